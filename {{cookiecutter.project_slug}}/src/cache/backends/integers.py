"""Numbers of 64 bits, for the backends that have no server to count."""

import re

from src.cache.backends.base import CacheError, Value

_INTEGER = re.compile("0|-?[1-9][0-9]{0,18}")
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


def add_to(value: Value | None, by: int) -> int:
    """Add to a stored number, or to 0 if there is none.

    Raises CacheError if the value is no integer of 64 bits, or the sum would not be one.
    """
    if value is None:
        value = "0"
    if not isinstance(value, str) or not _INTEGER.fullmatch(value):
        raise CacheError("The value is no integer, so it cannot be incremented.")
    total = int(value) + by
    if not all(_SMALLEST <= number <= _LARGEST for number in (int(value), by, total)):
        raise CacheError("The number would have more than 64 bits.")
    return total
