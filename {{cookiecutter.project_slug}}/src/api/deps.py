"""Dependencies for endpoints: database sessions, settings, `If-Match`. See also `src/api/auth.py`."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar, cast

from fastapi import Depends, Header, Request
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection
from starlette.types import Message
from starlette.websockets import WebSocket

from src.core.config import Settings
from src.core.events import State
from src.db.reader import Reader
from src.db.session import (
    Database,
    ReadOnlyAsyncSession,
    StreamingAsyncSession,
    close,
    explain,
    lend,
)

R = TypeVar("R", bound=ReadOnlyAsyncSession)

HAS_COMPLETED = "endpoint_has_completed"  # key in `session.info`
PRINCIPAL = "principal"  # key in the scope of a request, set by `src/api/auth.py`
# Headers that identify the caller. A request without them is anonymous.
CREDENTIAL_HEADERS = (b"authorization", b"cookie", b"x-api-key")


def state_of(connection: HTTPConnection) -> State:
    """Return the state of the lifespan. Raises RuntimeError if the application has not started."""
    state = connection.scope.get("state")
    if not state:
        raise RuntimeError(
            "The application has not started. In tests, use the fixture `client` or `sync_client`."
        )
    return cast(State, state)


async def get_database(connection: HTTPConnection) -> Database:
    return state_of(connection)["database"]


AppDatabase = Annotated[Database, Depends(get_database)]


async def get_reader(connection: HTTPConnection) -> Reader:
    """Return the reader, with which repositories read rows for responses."""
    return state_of(connection)["database"].reader


DbReader = Annotated[Reader, Depends(get_reader)]


async def _transaction(connection: HTTPConnection) -> AsyncGenerator[AsyncSession]:
    """Open a transaction, unless `IdempotencyMiddleware` has opened it and will commit it."""
    state = state_of(connection)
    session = state.get("transaction")
    if session is None:
        async with state["database"].transaction() as session:
            _commit_between_messages(connection, session)
            yield session
        return
    try:
        with lend(session):
            yield session
        session.info[HAS_COMPLETED] = True
    except Exception:
        await session.rollback()  # an exception handler may still return a response below 400
        raise


def _commit_between_messages(connection: HTTPConnection, session: AsyncSession) -> None:
    """Commit before a WebSocket sends or waits for a message, and so release the connection."""
    if not isinstance(connection, WebSocket):
        return
    receive, send, endpoint = connection.receive, connection.send, asyncio.current_task()

    async def commit() -> None:
        if session.in_transaction():
            with lend(session, lent=False):
                await session.commit()

    async def commit_and_receive() -> Message:
        await commit()
        return await receive()

    async def commit_and_send(message: Message) -> None:
        if asyncio.current_task() is endpoint:  # another task may send while the endpoint writes
            await commit()
        await send(message)

    vars(connection).update(receive=commit_and_receive, send=commit_and_send)


async def get_db_session(
    # scope="function" commits before the response is sent, so a failed commit never sends a 201.
    session: Annotated[AsyncSession, Depends(_transaction, scope="function")],
) -> AsyncSession:
    """Return the request's session. It commits before the response is sent."""
    return session


# Here, scope="function" refuses a dependency with `yield` that would outlive the session.
DbSession = Annotated[AsyncSession, Depends(get_db_session, scope="function")]


@asynccontextmanager
async def _reading(session: R) -> AsyncGenerator[R]:
    try:
        yield session
        session.sync_session.flush()  # refuses changes, which would be lost
    except InvalidRequestError as error:
        explain(error)
        raise
    finally:
        # FastAPI already shields this from cancellation. `async with session` would add a task.
        await close(session)


async def get_read_session(connection: HTTPConnection) -> AsyncGenerator[ReadOnlyAsyncSession]:
    """Open a session to read entities. Each statement runs by itself, without a transaction."""
    async with _reading(state_of(connection)["database"].reads()) as session:
        _commit_between_messages(connection, session)
        yield session


ReadSession = Annotated[ReadOnlyAsyncSession, Depends(get_read_session, scope="function")]


async def get_expensive_read_session(
    connection: HTTPConnection,
) -> AsyncGenerator[ReadOnlyAsyncSession]:
    """Open a session for reads that may be slow: few at the same time, each with a time limit.

    Requests beyond these limits get 503. See EXPENSIVE_READS in `src/db/session.py`.
    """
    async with _reading(state_of(connection)["database"].expensive()) as session:
        _commit_between_messages(connection, session)
        yield session


ExpensiveReadSession = Annotated[
    ReadOnlyAsyncSession, Depends(get_expensive_read_session, scope="function")
]


async def get_stream_session(connection: HTTPConnection) -> AsyncGenerator[StreamingAsyncSession]:
    """Open a session to stream a response from. It holds a connection until the response ends."""
    async with _reading(state_of(connection)["database"].streams()) as session:
        yield session


StreamSession = Annotated[StreamingAsyncSession, Depends(get_stream_session, scope="request")]


async def get_app_settings(connection: HTTPConnection) -> Settings:
    return state_of(connection)["settings"]


AppSettings = Annotated[Settings, Depends(get_app_settings)]


async def ignore_idempotency_key() -> None:
    """Mark a route whose responses are not stored: a stream, or a webhook with its own ids."""


NoIdempotencyKey = Depends(ignore_idempotency_key)

_VERSION_TAG = re.compile(r'"([1-9][0-9]{0,8})"')


async def get_expected_versions(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(
            description="The `ETag` of the version that you want to change or delete.",
            examples=['"3"'],
        ),
    ] = None,
) -> frozenset[int] | None:
    """Parse `If-Match`. Returns None if the header is absent or `*`.

    Weak tags and tags in another format match no version (RFC 9110, section 13.1.1).
    """
    if if_match is None or if_match.strip() == "*":
        return None
    given = ",".join(request.headers.getlist("if-match"))  # there may be several
    tags = (_VERSION_TAG.fullmatch(tag.strip()) for tag in given.split(","))
    return frozenset(int(tag[1]) for tag in tags if tag)


ExpectedVersions = Annotated[frozenset[int] | None, Depends(get_expected_versions)]
