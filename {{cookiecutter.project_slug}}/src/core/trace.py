"""Who and what caused the work: the principal, the request, the trace (W3C Trace Context)."""

import re
from contextvars import ContextVar

# Version, trace, parent and flags; a later version may append more.
_TRACEPARENT = re.compile(
    r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)

# The ID of the request, as in `X-Request-ID`.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
# The principal, as text, of the request, task or job.
principal_id: ContextVar[str | None] = ContextVar("principal_id", default=None)
traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def trace_id_of(value: str) -> str | None:
    """Return the trace ID of a `traceparent` header, or None if the header is invalid."""
    match = _TRACEPARENT.fullmatch(value)
    return match and match[1]
