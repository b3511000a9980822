"""Plain ASGI middleware. Each `BaseHTTPMiddleware` of Starlette would halve the throughput."""

import asyncio
import json
import re
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from functools import cached_property
from http import HTTPStatus
from itertools import accumulate
from typing import cast

import structlog
from fastapi.routing import iter_route_contexts
from starlette.datastructures import URL, Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware, RequestBodyLimitResponder
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.deps import PRINCIPAL
from src.api.problems import RETRY_AFTER, problem_response
from src.core.shutdown import is_stopping
from src.core.trace import principal_id, trace_id_of, traceparent
from src.domain.principal import Principal

log = structlog.get_logger(__name__)

WATCH_AFTER_SECONDS = 0.1
CLIENT_CLOSED_REQUEST = 499  # as in nginx
MAX_JSON_DEPTH = 64
# A JSON body may have 1,000 members and elements, or one for each 64 bytes of `max_body_size`.
MIN_JSON_MEMBERS = 1000
BYTES_PER_MEMBER = 64
MAX_QUERY_PARAMETERS = 1000
_BODY_HEADERS = {b"content-length", b"transfer-encoding"}
_HEADERS = [
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]
# Shared caches may store the response to a request with a cookie or an API key: RFC 9111 forbids it
# only for `Authorization`.
_PRIVATE = (b"cache-control", b"private, no-cache")
_CSP = b"content-security-policy"
_API_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# Pages load nothing from other hosts. Swagger UI, ReDoc and most admin interfaces use inline
# scripts and styles; ReDoc starts a web worker. A policy of a script is the one of a worker.
PAGE_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
_PAGE_TYPES = (b"text/html", b"text/javascript", b"application/javascript")
_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class RouteCheckMiddleware:
    """Refuse to start if one of the checks of the routes raises TypeError."""

    def __init__(self, app: ASGIApp, checks: Sequence[Callable[[list[BaseRoute]], None]]) -> None:
        self.app = app
        self.checks = checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                for check in self.checks:
                    check(scope["app"].routes)
            except TypeError as error:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
        await self.app(scope, receive, send)


class TraceMiddleware:
    """Store the caller's `traceparent` header. Dependencies store the principal."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal_id.set(None)
        for name, value in scope.get("headers", ()):
            if name == b"traceparent" and trace_id_of(text := value.decode("latin-1")):
                traceparent.set(text)
        await self.app(scope, receive, send)


class BodyLimitMiddleware(RequestBodyLimitMiddleware):
    """Reject a larger body with 413, with or without a Content-Length, and JSON with too many members.

    `max_body_size` of a route, a router or `include_router()` replaces the limit.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["query_string"].count(b"&") >= MAX_QUERY_PARAMETERS:
            detail = f"A request may have at most {MAX_QUERY_PARAMETERS} query parameters."
            response = problem_response(scope, HTTPStatus.REQUEST_URI_TOO_LONG, detail=detail)
            await response(scope, receive, send)
        else:
            await _BodyLimit(self.app, self.max_body_size)(scope, receive, send)


class _BodyLimit(RequestBodyLimitResponder):
    """Raises an error that becomes a problem. Starlette's response would be plain text."""

    def __init__(self, app: ASGIApp, max_body_size: int) -> None:
        super().__init__(app, max_body_size)
        self.json: list[bytes] = []

    @cached_property
    def _is_json(self) -> bool:
        return "json" in Headers(scope=self.scope).get("content-type", "json").lower()

    async def receive_with_limit(self) -> Message:
        try:
            message = await super().receive_with_limit()
        except HTTPException:
            detail = f"The request body must not exceed {self.max_body_size} bytes."
            raise HTTPException(413, detail) from None
        if message.get("body") and self._is_json:
            self.json.append(message["body"])
        if self.json and not message.get("more_body"):
            max_members = max(MIN_JSON_MEMBERS, self.max_body_size // BYTES_PER_MEMBER)
            _check_json(b"".join(self.json), max_members)
            self.json.clear()
        return message

    async def send_with_limit(self, message: Message) -> None:
        await self.send(message)


def _check_json(body: bytes, max_members: int) -> None:
    """Reject JSON that would block the event loop, or contains text that nothing can encode.

    Raises HTTPException.
    """
    if not json.detect_encoding(body).startswith("utf-8"):  # the parser accepts UTF-16 too
        raise HTTPException(400, "JSON must be encoded as UTF-8.")
    if b"\xed" in body or b"\\u" in body:
        text = _SURROGATE_PAIR.sub(b"-", body.replace(b"\\\\", b"-"))
        if re.search(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]", text):
            raise HTTPException(422, "Text must not contain unpaired surrogates.")
    opened = body.count(b"[") + body.count(b"{")
    if opened <= MAX_JSON_DEPTH and opened + body.count(b",") <= max_members:
        return  # no need to find out which characters are in strings
    # Valid JSON has at most four quotes and two brackets for each member.
    max_quotes = 4 * max_members + 2
    parts = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', max_quotes)
    text = b"".join(parts[::2])
    if sum(map(text.count, (b"[", b"{", b","))) <= max_members:
        brackets = re.sub(rb"[^][{}]+", b"", text)[: 2 * max_members]
        depths = accumulate(1 if bracket in b"[{" else -1 for bracket in brackets)
        if max(depths, default=0) <= MAX_JSON_DEPTH:
            return
    detail = f"A JSON body may have at most {max_members} members and {MAX_JSON_DEPTH} levels."
    raise HTTPException(413, detail)


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


class DisconnectMiddleware:
    """Cancel a GET or HEAD request, and its SQL statement, if the client disconnects.

    Requests that may write run to their end. Once a response has started, Starlette cancels it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
            await self.app(scope, receive, send)
            return
        watch = _Watch(scope, receive, send)
        # A task for each request would cost more; short requests end before this.
        timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch.begin)
        try:
            await self.app(scope, watch.receive, watch.send)
        except CancelledError:
            if not watch.has_cancelled or watch.request.uncancel():
                raise
            # For the log and the metrics: the server does not send it.
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
        finally:
            timer.cancel()
            if watch.task is not None:
                watch.task.cancel()


class _Watch:
    """Waits for the message `http.disconnect`, unless the application reads messages itself."""

    has_cancelled = False
    _has_started = False
    _is_read = False
    task: asyncio.Task[None] | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.request = cast("asyncio.Task[None]", asyncio.current_task())
        self._scope, self._receive, self._send = scope, receive, send

    def begin(self) -> None:
        has_body = any(name in _BODY_HEADERS for name, _ in self._scope["headers"])
        if not (has_body or self._is_read or self._has_started):
            self._messages = asyncio.Queue[Message]()
            self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()
            self._messages.put_nowait(message)
        if not self._has_started:
            self.has_cancelled = self.request.cancel()

    async def receive(self) -> Message:
        if self.task is None:
            self._is_read = True
            return await self._receive()
        message = await self._messages.get()
        if message["type"] == "http.disconnect":
            self._messages.put_nowait(message)  # it is the response to all later calls
        return message

    async def send(self, message: Message) -> None:
        self._has_started = True
        await self._send(message)


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

    A response to a principal is private, unless it has a `Cache-Control`. With `hsts_seconds`,
    responses over HTTPS have `Strict-Transport-Security`. A redirect to this service becomes
    relative, because an attacker may have chosen the Host header. While the process stops, also
    tell clients to open their next connection elsewhere.
    """

    def __init__(self, app: ASGIApp, hsts_seconds: int | None = None) -> None:
        self.app = app
        self.headers = self.https_headers = _HEADERS
        if hsts_seconds is not None:
            hsts = (b"strict-transport-security", b"max-age=%d" % hsts_seconds)
            self.https_headers = [*_HEADERS, hsts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = self.https_headers if scope["scheme"] == "https" else self.headers

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower(): value for name, value in message.get("headers", ())}
                added = [header for header in headers if header[0] not in given]
                if _PRIVATE[0] not in given and isinstance(scope.get(PRINCIPAL), Principal):
                    added.append(_PRIVATE)
                # A browser updates its stored page with the headers of a 304.
                if _CSP not in given and message["status"] != HTTPStatus.NOT_MODIFIED:
                    is_page = given.get(b"content-type", b"").startswith(_PAGE_TYPES)
                    added.append((_CSP, PAGE_POLICY if is_page else _API_POLICY))
                if is_stopping(scope):
                    added.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *added]
                if b"location" in given:
                    message["headers"] = _with_relative_location(scope, message["headers"])
            await send(message)

        await self.app(scope, receive, with_headers)


def _with_relative_location(
    scope: Scope, headers: list[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    own = str(URL(scope={**scope, "path": "/", "query_string": b""})).encode("latin-1")
    return [
        # Two slashes at the start would be the host of another service.
        (name, b"/" + value[len(own) :].lstrip(b"/"))
        if name.lower() == b"location" and value.startswith(own)
        else (name, value)
        for name, value in headers
    ]
