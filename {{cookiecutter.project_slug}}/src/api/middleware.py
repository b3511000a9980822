"""Plain ASGI middleware. Each `BaseHTTPMiddleware` of Starlette would halve the throughput."""

from asyncio import CancelledError
from http import HTTPStatus

import structlog
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware, RequestBodyLimitResponder
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.problems import RETRY_AFTER, problem_response
from src.core.shutdown import is_stopping
from src.core.trace import trace_id_of, traceparent

log = structlog.get_logger(__name__)

_HEADERS = [
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
_CSP = b"content-security-policy"
_API_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# Pages load nothing from other hosts. Swagger UI, ReDoc and most admin interfaces use inline
# scripts and styles; ReDoc starts a web worker. A policy of a script is the one of a worker.
_PAGE_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
_PAGE_TYPES = (b"text/html", b"text/javascript", b"application/javascript")


class TraceMiddleware:
    """Store the caller's `traceparent` header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == b"traceparent" and trace_id_of(text := value.decode("latin-1")):
                traceparent.set(text)
        await self.app(scope, receive, send)


class BodyLimitMiddleware(RequestBodyLimitMiddleware):
    """Reject a larger body with 413, with or without a Content-Length.

    `max_body_size` of a route, a router or `include_router()` replaces the limit.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _BodyLimit(self.app, self.max_body_size)(scope, receive, send)


class _BodyLimit(RequestBodyLimitResponder):
    """Raises an error that becomes a problem. Starlette's response would be plain text."""

    async def receive_with_limit(self) -> Message:
        try:
            return await super().receive_with_limit()
        except HTTPException:
            detail = f"The request body must not exceed {self.max_body_size} bytes."
            raise HTTPException(413, detail) from None

    async def send_with_limit(self, message: Message) -> None:
        await self.send(message)


class HeadMiddleware:
    """Respond to HEAD as to GET, unless a route declares HEAD. The server removes the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or _declares_head(scope):
            await self.app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            scope.update(as_get, method="HEAD")  # for the metrics: the route
            await send(message)

        await self.app(as_get, receive, send_head)


def _declares_head(scope: Scope) -> bool:
    return any(
        "HEAD" in (route.methods or ()) and route.matches(scope)[0] is Match.FULL
        for route in iter_route_contexts(scope["app"].routes)
    )


class UnexpectedErrorMiddleware:
    """Log an unhandled error and respond with 500; with 503 if the server cancels the request.

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
        except CancelledError:  # the server stops, and the time for requests in flight is over
            if not started and scope["type"] == "http":
                detail = "The service is restarting. Try again."
                response = problem_response(
                    scope, HTTPStatus.SERVICE_UNAVAILABLE, headers=RETRY_AFTER, detail=detail
                )
                await response(scope, receive, send)
            raise


class SecurityHeadersMiddleware:
    """Add the headers that OWASP recommends, unless the response has set them.

    While the process stops, also tell clients to open their next connection elsewhere.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower(): value for name, value in message.get("headers", ())}
                added = [header for header in _HEADERS if header[0] not in given]
                # A browser updates its stored page with the headers of a 304.
                if _CSP not in given and message["status"] != HTTPStatus.NOT_MODIFIED:
                    is_page = given.get(b"content-type", b"").startswith(_PAGE_TYPES)
                    added.append((_CSP, _PAGE_POLICY if is_page else _API_POLICY))
                if is_stopping(scope):
                    added.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self.app(scope, receive, with_headers)
