import re

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(name: str) -> str:
    """Convert `OrderLine` to `order_line`, and `HTTPCall` to `http_call`."""
    return _WORD_START.sub("_", name).lower()
