"""Response headers that protect callers and browsers."""

from starlette.datastructures import URL
from starlette.types import Message, Scope

from src.api.deps import PRINCIPAL
from src.core.shutdown import is_stopping
from src.domain.principal import Principal

Headers = list[tuple[bytes, bytes]]

_HEADERS = [
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
# Shared caches may store the response to a request with a cookie or an API key: RFC 9111 forbids it
# only for `Authorization`.
_PRIVATE = (b"cache-control", b"private, no-cache")
_NAMES = {b"strict-transport-security", *(name for name, _ in _HEADERS)}
_NOT_MODIFIED = 304
_CSP = b"content-security-policy"
_API_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# Pages load nothing from other hosts. Swagger UI, ReDoc and most admin interfaces use inline
# scripts and styles; ReDoc starts a web worker. A policy of a script is the one of a worker.
PAGE_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
_PAGE_TYPES = (b"text/html", b"text/javascript", b"application/javascript")


class SecurityHeaders:
    """The headers that OWASP recommends, unless the response has set them.

    A response to a principal is private, unless it has a `Cache-Control`. With `hsts_seconds`,
    responses over HTTPS have `Strict-Transport-Security`. A redirect to this service becomes
    relative, because an attacker may have chosen the Host header. While the process stops, also
    tell clients to open their next connection elsewhere.
    """

    def __init__(self, hsts_seconds: int | None = None) -> None:
        self.headers = self.https_headers = _HEADERS
        if hsts_seconds is not None:
            hsts = (b"strict-transport-security", b"max-age=%d" % hsts_seconds)
            self.https_headers = [*_HEADERS, hsts]

    def complete(self, scope: Scope, response: Message) -> Headers:
        """Return the headers of the response with those that it lacks."""
        headers: Headers = [*response.get("headers", ())]
        given = {name.lower(): value for name, value in headers}
        always = self.https_headers if scope["scheme"] == "https" else self.headers
        if _NAMES.isdisjoint(given):
            headers += always
        else:
            headers += [header for header in always if header[0] not in given]
        if _PRIVATE[0] not in given and isinstance(scope.get(PRINCIPAL), Principal):
            headers.append(_PRIVATE)
        # A browser updates its stored page with the headers of a 304.
        if _CSP not in given and response["status"] != _NOT_MODIFIED:
            is_page = given.get(b"content-type", b"").startswith(_PAGE_TYPES)
            headers.append((_CSP, PAGE_POLICY if is_page else _API_POLICY))
        if is_stopping(scope):
            headers.append((b"connection", b"close"))
        return _with_relative_location(scope, headers) if b"location" in given else headers


def _with_relative_location(scope: Scope, headers: Headers) -> Headers:
    own = str(URL(scope={**scope, "path": "/", "query_string": b""})).encode("latin-1")
    return [
        # Two slashes at the start would be the host of another service.
        (name, b"/" + value[len(own) :].lstrip(b"/"))
        if name.lower() == b"location" and value.startswith(own)
        else (name, value)
        for name, value in headers
    ]
