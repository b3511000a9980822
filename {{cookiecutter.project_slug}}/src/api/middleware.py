"""Plain ASGI middleware. Each `BaseHTTPMiddleware` of Starlette would halve the throughput."""

from http import HTTPStatus

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.problems import problem_response
from src.core.trace import trace_id_of, traceparent

log = structlog.get_logger(__name__)

_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_API_CSP = "default-src 'none'; frame-ancestors 'none'"
# Swagger UI and ReDoc use inline scripts and styles, and ReDoc starts a web worker.
_DOCS_CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)


class TraceMiddleware:
    """Store the caller's `traceparent` header for log lines and tasks."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == b"traceparent" and trace_id_of(text := value.decode("latin-1")):
                traceparent.set(text)
        await self.app(scope, receive, send)


class BodyLimitMiddleware:
    """Reject a body of more than `limit` bytes with 413, with or without a Content-Length.

    FastAPI's `max_body_size` acts outside all middleware and does not return a problem document.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise HTTPException(413, f"The request body must not exceed {self.limit} bytes.")
            return message

        await self.app(scope, count, send)


class UnexpectedErrorMiddleware:
    """Log an unhandled error and respond with 500.

    Starlette's own handler for this is outside all middleware: its response has no request ID, no
    security headers and no CORS headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            if started or scope["type"] != "http":
                raise
            log.exception("unexpected_error", method=scope["method"], path=scope["path"])
            response = problem_response(scope, HTTPStatus.INTERNAL_SERVER_ERROR)
            await response(scope, receive, send)


class SecurityHeadersMiddleware:
    """Add the headers that OWASP recommends for APIs. `page_paths` are pages with scripts."""

    def __init__(self, app: ASGIApp, page_paths: tuple[str, ...] = ()) -> None:
        self.app = app
        self.page_paths = page_paths
        self.headers = self._encode(_API_CSP)
        self.page_headers = self._encode(_DOCS_CSP)

    @staticmethod
    def _encode(policy: str) -> list[tuple[bytes, bytes]]:
        headers = {**_HEADERS, "Content-Security-Policy": policy}
        return [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_page = path.startswith(self.page_paths)
        added = self.page_headers if is_page else self.headers

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self.app(scope, receive, with_headers)
