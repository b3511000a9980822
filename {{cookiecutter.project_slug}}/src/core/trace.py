"""The trace that a request belongs to (W3C Trace Context): logs name it, tasks carry it on."""

import re
from contextvars import ContextVar

# Version, trace, parent and flags; a later version may add to it.
_TRACEPARENT = re.compile(
    r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)

traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def trace_id_of(value: str) -> str | None:
    """Return the trace's id from a `traceparent`; None if it is not a valid one."""
    match = _TRACEPARENT.fullmatch(value)
    return match and match[1]
