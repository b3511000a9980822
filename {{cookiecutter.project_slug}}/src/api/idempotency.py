"""`Idempotency-Key`: whoever heard no answer to a POST sends it again, and nothing happens twice.

The key is inserted first in the transaction that the endpoint then works in, and the response is
kept in it, so that all of it is committed or none. Of two requests with one key the second waits in
PostgreSQL for the first. What fails leaves nothing behind, and may be tried again.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple, Self, cast

from fastapi.routing import RouteContext, iter_route_contexts
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.deps import SHARED_TRANSACTION
from src.db.models.idempotency import IdempotencyKey
from src.db.session import DatabaseUnavailableError
from src.services.idempotency import IdempotencyService

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"

_CREDENTIALS = frozenset({b"authorization", b"cookie", b"x-api-key"})
_VISIBLE = re.compile(rb"[!-~]{1,255}")
_BAD_KEY = f"{HEADER} must have 1 to 255 visible ASCII characters, in quotes or without."
_FIRST_ERROR_STATUS = 400


class _NotCommittedError(Exception):
    """Unwinds the application, which believes that its response was sent."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class IdempotencyMiddleware:
    """Answer a POST that was answered before with the same response.

    It belongs inside the limit of the body, which it holds in memory, as it does the response.
    `handlers` are those of the application: they stand inside all middleware, and turn into
    problems what they see raised there alone.
    """

    def __init__(self, app: ASGIApp, handlers: Mapping[Any, Any]) -> None:
        self.app = app
        self.guarded = ExceptionMiddleware(self._answer, handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and _keys_of(scope):
            route = _route_of(scope)
            if route is not None:
                scope["route"] = route  # for the metrics, should the router not be asked
                await self.guarded(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await _Asked.read(scope, receive)
        async with scope["state"]["database"].transaction() as session:
            kept = await IdempotencyService.begin(session, asked.key, asked.fingerprint)
            if kept is None:
                response = _HeldResponse(session, asked.key, send)
                scope["state"] = {**scope["state"], SHARED_TRANSACTION: session}
                scope.pop("extensions", None)  # what is sent through them could not be kept
                await self._run(scope, asked.repeat_to(receive), response)
                return
        await _replay(kept)(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, response: "_HeldResponse") -> None:
        try:
            await self.app(scope, receive, response.hold)
        except _NotCommittedError as error:
            raise error.cause from None


class _Asked(NamedTuple):
    """A request: what its key is stored as, what tells it from others, and what was read of it."""

    key: bytes
    fingerprint: bytes
    body: bytes

    @classmethod
    async def read(cls, scope: Scope, receive: Receive) -> Self:
        key = _plain_key(scope)
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect as error:
            raise HTTPException(400, "The body has no end.") from error
        path, headers = scope["path"].encode(), scope["headers"]
        # Nobody gets the response of another caller, nor can read a key of the API in the table.
        caller = [part for header in headers if header[0] in _CREDENTIALS for part in header]
        content_type = [value for name, value in headers if name == b"content-type"]
        return cls(
            key=_digest(path, key, *caller),
            fingerprint=_digest(scope["query_string"], body, *content_type),
            body=body,
        )

    def repeat_to(self, receive: Receive) -> Receive:
        """Give out the body, and after it what the server has to say."""
        unread: list[Message] = [{"type": "http.request", "body": self.body}]

        async def repeat() -> Message:
            return unread.pop() if unread else await receive()

        return repeat


class _HeldResponse:
    """Holds a response back until it is kept and committed, and then sends it.

    Tasks that run behind a response find it sent and its transaction committed, as ever.
    """

    def __init__(self, session: AsyncSession, key: bytes, send: Send) -> None:
        self.session = session
        self.key = key
        self.send = send
        self.held: list[Message] = []

    async def hold(self, message: Message) -> None:
        self.held.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            try:
                await self._end_transaction()
            except (DatabaseUnavailableError, SQLAlchemyError) as error:
                raise _NotCommittedError(error) from error
            for each in self.held:
                await self.send(each)

    async def _end_transaction(self) -> None:
        start, *parts = self.held
        # There is no transaction any more if an error was raised that had a handler.
        if start["status"] >= _FIRST_ERROR_STATUS or not self.session.in_transaction():
            await self.session.rollback()
            return
        given = start.get("headers", ())
        headers = [(name.decode("latin-1"), text.decode("latin-1")) for name, text in given]
        body = b"".join(part.get("body", b"") for part in parts)
        await IdempotencyService.keep(self.session, self.key, start["status"], headers, body)
        await self.session.commit()


def _replay(kept: IdempotencyKey) -> Response:
    response = Response(kept.body, cast(int, kept.status))
    headers = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in kept.headers]
    response.raw_headers = [*headers, (REPLAYED.lower().encode(), b"true")]
    return response


def _route_of(scope: Scope) -> RouteContext | None:
    """Find the route of a request; where there is none, nothing can happen twice."""
    routes = iter_route_contexts(scope["app"].routes)
    return next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)


def _keys_of(scope: Scope) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"idempotency-key"]


def _plain_key(scope: Scope) -> bytes:
    """Read the key as the standard has it, a string in quotes, or bare, as many send it."""
    key, *others = _keys_of(scope)
    if len(key) > 1 and key.startswith(b'"') and key.endswith(b'"'):
        key = key[1:-1]
    if others or not _VISIBLE.fullmatch(key):
        raise HTTPException(400, _BAD_KEY)
    return key


def _digest(*parts: bytes) -> bytes:
    """Hash the parts and where each ends."""
    lengths = ",".join(str(len(part)) for part in parts).encode()
    return sha256(b"".join((lengths, b":", *parts))).digest()
