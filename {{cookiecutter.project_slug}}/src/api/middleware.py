"""The outermost middleware. Each `BaseHTTPMiddleware` of Starlette would halve the throughput."""

import asyncio
from asyncio import CancelledError
from collections.abc import Mapping
from http import HTTPStatus
from random import getrandbits
from time import perf_counter
from typing import Any, cast
from uuid import UUID

import structlog
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import iter_route_contexts
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.body_limit import has_body
from src.api.metrics import record
from src.api.problems import RETRY_AFTER, problem_response
from src.api.security_headers import SecurityHeaders
from src.core.trace import principal_id, request_id, trace_id_of, traceparent

log = structlog.get_logger(__name__)

WATCH_AFTER_SECONDS = 0.1
CLIENT_CLOSED_REQUEST = 499  # as in nginx


class RequestMiddleware:
    """Do for each request and its response what no other middleware may hide.

    - The request gets an ID, the caller's `X-Request-ID` if that is a UUID, and joins the trace of
      its `traceparent` header.
    - The response gets the ID and security headers. It is counted, timed and logged at its end.
    - An unhandled error becomes 500, and a request that the server cancels 503. Starlette's own
      handler is outside all middleware: its response has no ID, no security and no CORS headers.
    - HEAD is served like GET, unless a route declares HEAD. The server removes the body.
    - A GET or HEAD request, and its SQL statement, is cancelled if the client disconnects. Requests
      that may write run to their end. Once a response has started, Starlette cancels it.

    One class does all of it, because each layer with its own `send` costs time. `cors` are the
    options of `CORSMiddleware`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        security_headers: SecurityHeaders,
        cors: Mapping[str, Any] | None = None,
        debug: bool = False,
    ) -> None:
        self.app = CORSMiddleware(app, **cors) if cors else app
        self.security_headers = security_headers
        self.cors = cors
        self.debug = debug  # Starlette returns a page with the traceback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            _set_origin(scope)
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.security_headers)
        if scope["method"] in {"GET", "HEAD"}:
            exchange.watch_client()
        try:
            await self.app(exchange.scope, exchange.receive, exchange.send)
        except CancelledError:
            if not await self._respond_to_cancellation(exchange):
                raise
        except Exception:
            if exchange.has_started or self.debug:
                raise
            log.exception("unexpected_error", method=scope["method"], path=scope["path"])
            response = problem_response(scope, HTTPStatus.INTERNAL_SERVER_ERROR)
            await self._respond(exchange, response)
        finally:
            exchange.end()
            exchange.leave_client()

    async def _respond_to_cancellation(self, exchange: "_Exchange") -> bool:
        """Return whether the client has disconnected; otherwise, the server cancels the request."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if exchange.has_disconnected and not task.uncancel():
            # For the log and the metrics: the server does not send it.
            await self._respond(exchange, Response(status_code=CLIENT_CLOSED_REQUEST))
            return True
        if not exchange.has_started:  # the time for requests in flight is over
            detail = "The service is restarting. Try again."
            status = HTTPStatus.SERVICE_UNAVAILABLE
            scope = exchange.scope
            response = problem_response(scope, status, headers=RETRY_AFTER, detail=detail)
            await self._respond(exchange, response)
        return False

    async def _respond(self, exchange: "_Exchange", response: ASGIApp) -> None:
        app = CORSMiddleware(response, **self.cors) if self.cors else response
        await app(exchange.scope, exchange.receive, exchange.send)


def _set_origin(scope: Scope) -> None:
    """Set the request's ID and trace. Dependencies set the principal."""
    principal_id.set(None)
    identifier = None
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            identifier = identifier or _valid_id(value.decode("latin-1"))
        elif name == b"traceparent" and trace_id_of(text := value.decode("latin-1")):
            traceparent.set(text)
    # It is no secret, and reading from the system's generator costs a system call.
    request_id.set(identifier or f"{getrandbits(128):032x}")


def _valid_id(given: str) -> str | None:
    """Return the ID if it is a UUID, in one of the forms that Python parses."""
    try:
        UUID(given)
    except ValueError:
        return None
    return given


class _Exchange:
    """A request and its response, between the server and the application."""

    has_disconnected = False
    _is_read = False
    _is_recorded = False
    _timer: asyncio.TimerHandle | None = None
    _watching: asyncio.Task[None] | None = None

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: SecurityHeaders
    ) -> None:
        self._started_at = perf_counter()
        self.status = 0
        self.scope, self._receive, self._send = scope, receive, send
        self._security_headers = headers
        # A mount replaces them.
        self._app, self._root_path = scope["app"], scope.get("root_path", "")
        self._method = scope["method"]
        if self._method == "HEAD" and not _declares_head(scope):
            self.scope = {**scope, "method": "GET"}

    @property
    def has_started(self) -> bool:
        return self.status != 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = self._security_headers.complete(self.scope, message)
            headers.append((b"x-request-id", (request_id.get() or "").encode()))
            message["headers"] = headers
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.end()  # `BackgroundTasks` run after this

    def end(self) -> None:
        if self._is_recorded:
            return
        self._is_recorded = True
        # Not in the scope of the application, which may still run in the background.
        scope = {**self.scope, "method": "HEAD"} if self._method == "HEAD" else self.scope
        seconds = perf_counter() - self._started_at
        record(scope, self.status or 500, seconds, self._app, self._root_path)

    def watch_client(self) -> None:
        """Cancel the request if its client disconnects, unless the application reads messages."""
        loop = asyncio.get_running_loop()
        self._request = cast("asyncio.Task[None]", asyncio.current_task(loop))
        # A task for each request would cost more; short requests end before this.
        self._timer = loop.call_later(WATCH_AFTER_SECONDS, self._start_watching)

    def leave_client(self) -> None:
        """Stop watching. Until then, work after the response may ask if the client is still there."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _start_watching(self) -> None:
        if not (self._is_read or self.has_started or has_body(self.scope)):
            self._messages = asyncio.Queue[Message]()
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()
            self._messages.put_nowait(message)
        if not self.has_started:
            self.has_disconnected = self._request.cancel()

    async def receive(self) -> Message:
        if self._watching is None:
            self._is_read = True
            return await self._receive()
        message = await self._messages.get()
        if message["type"] == "http.disconnect":
            self._messages.put_nowait(message)  # it is the response to all later calls
        return message


def _declares_head(scope: Scope) -> bool:
    return any(
        "HEAD" in (route.methods or ()) and route.matches(scope)[0] is Match.FULL
        for route in iter_route_contexts(scope["app"].routes)
    )
