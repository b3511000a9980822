"""`Idempotency-Key`: a POST that is sent again gets the first response, and happens once.

The key is inserted first in the transaction that the endpoint then works in, and the response is
stored in it, so that all of it commits or none. Of two requests with one key the second waits in
PostgreSQL for the first. A request that fails leaves no key behind, and may be tried again.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, cast

from fastapi.routing import RouteContext, iter_route_contexts
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.deps import CREDENTIAL_HEADERS
from src.core.events import State
from src.db.session import DatabaseUnavailableError
from src.repositories.idempotency import IdempotencyRepository

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"

_VISIBLE = re.compile(rb"[!-~]{1,255}")
_BAD_KEY = f"{HEADER} must have 1 to 255 visible ASCII characters, in quotes or without."
_FIRST_ERROR_STATUS = 400


class _CommitError(Exception):
    """Carries an error through the application, which believes that its response was sent."""


class IdempotencyMiddleware:
    """Answer a repeated POST with the stored response of the first.

    It buffers the request's body and the response: add it inside the limit of the body. `handlers`
    are the application's: Starlette calls them for errors inside all middleware, not for those here.
    """

    def __init__(self, app: ASGIApp, handlers: Mapping[Any, Any]) -> None:
        self.app = app
        self._with_error_handlers = ExceptionMiddleware(self._respond, handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and _keys_of(scope):
            route = _route_of(scope)
            if route is not None:
                scope["route"] = route  # for the metrics: a replay never reaches the router
                await self._with_error_handlers(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _hash_key(scope)
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect as error:
            raise HTTPException(400, "Incomplete request body.") from error
        content_type = [value for name, value in scope["headers"] if name == b"content-type"]
        fingerprint = _digest(scope["query_string"], body, *content_type)
        state: State = scope["state"]
        async with state["database"].transaction() as session:
            stored = await IdempotencyRepository(session).acquire(key, fingerprint)
            if stored is None:
                response = _BufferedResponse(session, key, send)
                scope["state"] = State(**{**state, "transaction": session})
                scope.pop("extensions", None)  # responses sent through them could not be stored
                try:
                    await self.app(scope, _replay_body(body, receive), response.buffer)
                except _CommitError as error:
                    raise error.args[0] from None
                return
        replay = Response(stored.body, cast(int, stored.status))
        given = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in stored.headers]
        replay.raw_headers = [*given, (REPLAYED.lower().encode(), b"true")]
        await replay(scope, receive, send)


class _BufferedResponse:
    """Holds the response back until it is stored and committed, then sends it.

    `BackgroundTasks` run after that, as they do without a key.
    """

    def __init__(self, session: AsyncSession, key: bytes, send: Send) -> None:
        self.session = session
        self.key = key
        self.send = send
        self.messages: list[Message] = []

    async def buffer(self, message: Message) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            try:
                await self._end_transaction()
            except (DatabaseUnavailableError, SQLAlchemyError) as error:
                raise _CommitError(error) from error
            for each in self.messages:
                await self.send(each)

    async def _end_transaction(self) -> None:
        start, *parts = self.messages
        # After an error with a handler there is no transaction: `get_db_session` rolled it back.
        if start["status"] >= _FIRST_ERROR_STATUS or not self.session.in_transaction():
            await self.session.rollback()
            return
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in start.get("headers", ())
        ]
        body = b"".join(part.get("body", b"") for part in parts)
        repository = IdempotencyRepository(self.session)
        await repository.store_response(self.key, start["status"], headers, body)
        await self.session.commit()


def _route_of(scope: Scope) -> RouteContext | None:
    """Without a route nothing can happen twice, and there is nothing to store."""
    routes = iter_route_contexts(scope["app"].routes)
    return next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """Receive the body again, and then what the server sends."""
    unread: list[Message] = [{"type": "http.request", "body": body}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


def _keys_of(scope: Scope) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"idempotency-key"]


def _hash_key(scope: Scope) -> bytes:
    """Hash path, key and caller: no caller gets the response of another.

    The standard puts the key in quotes, many clients do not.
    """
    key, *others = _keys_of(scope)
    if len(key) > 1 and key.startswith(b'"') and key.endswith(b'"'):
        key = key[1:-1]
    if others or not _VISIBLE.fullmatch(key):
        raise HTTPException(400, _BAD_KEY)
    caller = [part for each in scope["headers"] if each[0] in CREDENTIAL_HEADERS for part in each]
    return _digest(scope["path"].encode(), key, *caller)


def _digest(*parts: bytes) -> bytes:
    """Hash the parts and their lengths."""
    lengths = ",".join(str(len(part)) for part in parts).encode()
    return sha256(b"".join((lengths, b":", *parts))).digest()
