"""`Idempotency-Key`: a repeated POST changes nothing and gets the response of the first one.

The key, the endpoint's changes and the response commit in one transaction. All dependencies run
first, so that a caller whom they reject leaves no key and gets no stored response. A request whose
key is in use by another one gets 409. A failed request stores no key, so the client can retry it.

Each principal has separate keys. A repeated request after a new login, or with the rotated API key,
gets the stored response. Without a principal, each set of credentials has separate keys.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial, wraps
from hashlib import sha256
from typing import Any, cast

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from fastapi.security import APIKeyHeader
from fastapi.security.base import SecurityBase
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.auth import principal_of, walk
from src.api.deps import CREDENTIAL_HEADERS, HAS_COMPLETED
from src.api.openapi import accepts_idempotency_key
from src.core.events import State
from src.db.models.idempotency import IdempotencyKey
from src.db.session import DatabaseUnavailableError
from src.domain.errors import IdempotencyKeyInUseError
from src.repositories.idempotency import IdempotencyRepository

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"

_VISIBLE = re.compile(rb"[!-~]{1,255}")
_BAD_KEY = f"{HEADER} must have 1 to 255 visible ASCII characters. Quotes around them are optional."
_FIRST_ERROR_STATUS = 400
_GUARDED = "acquires_idempotency_key"  # attribute of an endpoint


class _CommitError(Exception):
    """Carries a commit error through the application, past its exception handlers."""


class IdempotencyMiddleware:
    """Replay the stored response to a repeated POST.

    It reads the whole request body into memory, so `BodyLimitMiddleware` must be outside of it.
    `handlers` are the application's exception handlers: Starlette does not call them for errors in
    middleware.
    """

    def __init__(self, app: ASGIApp, handlers: Mapping[Any, Any]) -> None:
        self.app = app
        self._with_error_handlers = ExceptionMiddleware(self._respond, handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and _keys_of(scope):
            route = _route_of(scope)
            if route is not None:
                _guard(route.dependant)
                scope["route"] = route  # for `_respond`, and the metrics of a request it rejects
                app: ASGIApp = self._with_error_handlers
                if route.max_body_size is not None:
                    app = RequestBodyLimitMiddleware(app, route.max_body_size)
                await app(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        dependant: Dependant = scope["route"].dependant
        key = _key_of(scope)
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect as error:
            raise HTTPException(400, "Incomplete request body.") from error
        # A dependency may identify the caller by a header that it declares as a parameter.
        declared = [
            field.alias
            for field in get_flat_params(dependant)
            if isinstance(field.field_info, params.Header)
        ]
        given = _headers(scope, "content-type", *declared)
        fingerprint = _digest(scope["query_string"], body, *given)
        state: State = scope["state"]
        async with state["database"].writes() as session:
            hash_key = partial(_hash_key, scope, dependant, key)
            request = _KeyedRequest(session, hash_key, fingerprint, send)
            scope["state"] = State(**{**state, "transaction": session})
            scope.pop("extensions", None)  # they could send a response that cannot be stored
            token = _current.set(request)
            try:
                await self.app(scope, _replay_body(body, receive), request.buffer)
            except _CommitError as error:
                raise error.args[0] from None
            finally:
                _current.reset(token)


class _KeyedRequest:
    """Acquires the key before the endpoint runs, and buffers the response until it is committed.

    `BackgroundTasks` run after that, as they do without an idempotency key.
    """

    def __init__(
        self, session: AsyncSession, hash_key: Callable[[], bytes], fingerprint: bytes, send: Send
    ) -> None:
        self.session = session
        self.transaction: Any = None
        self.hash_key = hash_key
        self.key = b""
        self.fingerprint = fingerprint
        self.send = send
        self.messages: list[Message] = []
        self.has_started = False
        self.stored: IdempotencyKey | None = None
        self.loop = asyncio.get_running_loop()

    def run(self, endpoint: Callable[[], Any]) -> Any:
        """Call the endpoint, unless a response is stored. FastAPI calls a `def` in a thread."""
        self.has_started = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            is_new = asyncio.run_coroutine_threadsafe(self.acquire(), self.loop).result()
            return endpoint() if is_new else Response()
        return self._run(endpoint)

    async def _run(self, endpoint: Callable[[], Any]) -> Any:
        return await endpoint() if await self.acquire() else Response()

    async def acquire(self) -> bool:
        self.key = self.hash_key()  # dependencies have found out the principal
        self.stored = await IdempotencyRepository(self.session).acquire(self.key, self.fingerprint)
        self.transaction = self.session.sync_session.get_transaction()
        return self.stored is None

    async def buffer(self, message: Message) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            try:
                await self._end_transaction()
            except (DatabaseUnavailableError, IdempotencyKeyInUseError, SQLAlchemyError) as error:
                raise _CommitError(error) from error
            await self.session.close()  # a background task cannot use it
            for each in self.messages:
                await self.send(each)

    async def _end_transaction(self) -> None:
        start, *parts = self.messages
        repository = IdempotencyRepository(self.session)
        has_failed = start["status"] >= _FIRST_ERROR_STATUS
        if self.stored is not None:
            self.messages = self.messages if has_failed else _replay(self.stored)
            return  # `close()` rolls back what dependencies have changed
        if has_failed and self.session.info.get(HAS_COMPLETED):
            # The endpoint returned the error instead of raising it, so its changes are wanted.
            await repository.release(self.key)
            await self.session.commit()
            return
        # An exception handler may return 200; `get_db_session` has rolled back then.
        if has_failed or not self.session.in_transaction():
            await self.session.rollback()
            return
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in start.get("headers", ())
        ]
        body = b"".join(part.get("body", b"") for part in parts)
        has_rolled_back = self.session.sync_session.get_transaction() is not self.transaction
        if has_rolled_back and await repository.acquire(self.key, self.fingerprint):
            raise IdempotencyKeyInUseError  # another request has used it since
        await repository.store_response(self.key, start["status"], headers, body)
        await self.session.commit()


_current: ContextVar[_KeyedRequest | None] = ContextVar("keyed_request", default=None)


def _guard(dependant: Dependant) -> None:
    """Make the endpoint acquire the key first. FastAPI calls it if no dependency rejects."""
    endpoint = cast(Callable[..., Any], dependant.call)
    if hasattr(endpoint, _GUARDED):
        return

    @wraps(endpoint)
    def guarded(**values: Any) -> Any:
        request = _current.get()
        if request is None or request.has_started:  # the endpoint may send a request to another
            return endpoint(**values)
        return request.run(lambda: endpoint(**values))

    setattr(guarded, _GUARDED, True)
    dependant.call = guarded


def _replay(stored: IdempotencyKey) -> list[Message]:
    given = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in stored.headers]
    headers = [*given, (REPLAYED.lower().encode(), b"true")]
    return [
        {"type": "http.response.start", "status": stored.status, "headers": headers},
        {"type": "http.response.body", "body": stored.body},
    ]


def _route_of(scope: Scope) -> RouteContext | None:
    """Return the route of the request, or None if its response is not stored.

    These are unknown paths, which change nothing, mounts, and routes with `NoIdempotencyKey`.
    """
    routes = iter_route_contexts(scope["app"].routes)
    route = next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)
    if route is None or not isinstance(route.original_route, APIRoute):
        return None
    return route if accepts_idempotency_key(route.dependant) else None


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first repeats the body that was read already."""
    unread: list[Message] = [{"type": "http.request", "body": body}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


def _keys_of(scope: Scope) -> list[bytes]:
    return [value for name, value in scope["headers"] if name == b"idempotency-key"]


def _key_of(scope: Scope) -> bytes:
    """Return the key. The IETF draft has quotes around it; many clients omit them."""
    key, *others = _keys_of(scope)
    if len(key) > 1 and key.startswith(b'"') and key.endswith(b'"'):
        key = key[1:-1]
    if others or not _VISIBLE.fullmatch(key):
        raise HTTPException(400, _BAD_KEY)
    return key


def _hash_key(scope: Scope, dependant: Dependant, key: bytes) -> bytes:
    """Hash the path, the key and the caller, so that each caller has separate keys.

    The endpoint may identify callers by other security schemes or cookies, too.
    """
    dependants = list(walk(dependant))
    calls: list[Any] = [each.call for each in dependants]
    principal = principal_of(HTTPConnection(scope))
    names = [call.model.name for call in calls if isinstance(call, APIKeyHeader)]
    has_schemes = any(isinstance(call, SecurityBase) for call in calls)
    if not principal or has_schemes or any(each.cookie_params for each in dependants):
        names += [name.decode() for name in CREDENTIAL_HEADERS]
    owner = str(principal or "").encode()
    return _digest(scope["path"].encode(), key, owner, *_headers(scope, *names))


def _headers(scope: Scope, *names: str) -> list[bytes]:
    """Return the names and values of the headers with these names."""
    wanted = {name.lower().encode() for name in names}
    return [part for header in scope["headers"] if header[0] in wanted for part in header]


def _digest(*parts: bytes) -> bytes:
    """Hash the parts with their lengths, so that parts cannot shift into each other."""
    lengths = ",".join(str(len(part)) for part in parts).encode()
    return sha256(b"".join((lengths, b":", *parts))).digest()
