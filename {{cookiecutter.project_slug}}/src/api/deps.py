"""Dependencies of endpoints: database sessions, settings, API key, expected versions."""

import re
import secrets
from collections.abc import AsyncGenerator
from typing import Annotated, cast

from fastapi import Depends, Header, HTTPException, Request, Security, status
from fastapi.security import APIKeyHeader
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import Settings
from src.core.events import State
from src.db.session import ReadOnlyAsyncSession

# The headers that say who calls.
CREDENTIAL_HEADERS = (b"authorization", b"cookie", b"x-api-key")


def _state_of(request: Request) -> State:
    return cast(State, request.scope["state"])


async def _transaction(request: Request) -> AsyncGenerator[AsyncSession]:
    """Commit at the end, unless `IdempotencyMiddleware` has opened the transaction to commit it."""
    state = _state_of(request)
    session = state.get("transaction")
    if session is None:
        async with state["database"].transaction() as session:
            yield session
        return
    try:
        yield session
    except Exception:
        await session.rollback()  # whatever response an exception handler returns
        raise


async def get_db_session(
    # scope="function" commits before the response is sent: a failed commit is never a lost 201.
    session: Annotated[AsyncSession, Depends(_transaction, scope="function")],
) -> AsyncSession:
    """The request's transaction, which commits before the response is sent."""
    return session


DbSession = Annotated[AsyncSession, Depends(get_db_session)]


async def get_read_session(request: Request) -> AsyncGenerator[ReadOnlyAsyncSession]:
    """A session that only reads, each statement by itself, without a transaction."""
    session = _state_of(request)["database"].reads()
    try:
        yield session
    finally:
        # FastAPI shields this from cancellation; `async with` would start a task for that as well.
        await session.close()


ReadSession = Annotated[ReadOnlyAsyncSession, Depends(get_read_session, scope="function")]


async def get_app_settings(request: Request) -> Settings:
    return _state_of(request)["settings"]


AppSettings = Annotated[Settings, Depends(get_app_settings)]

_api_key_header = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="One of the keys in API_KEYS."
)


async def require_api_key(
    settings: AppSettings, given: Annotated[str | None, Security(_api_key_header)]
) -> None:
    """Answer 401 to requests without a valid key, if any key is configured.

    `Settings` allows an empty API_KEYS in development and tests alone.
    """
    if not settings.API_KEYS:
        return
    # Compare with every key, each in constant time: the duration must not reveal a match.
    known = [key.get_secret_value().encode() for key in settings.API_KEYS]
    matches = [secrets.compare_digest((given or "").encode(), key) for key in known]
    if not any(matches):
        raise HTTPException(
            status.HTTP_401_UNAUTHORIZED,
            "Send a valid key in X-API-Key.",
            headers={"WWW-Authenticate": 'ApiKey header="X-API-Key"'},
        )


ApiKey = Depends(require_api_key)

_VERSION_TAG = re.compile(r'"([1-9][0-9]{0,8})"')


async def get_expected_versions(
    request: Request,
    if_match: Annotated[
        str | None, Header(description='The ETag that the change is based on, such as `"3"`.')
    ] = None,
) -> frozenset[int] | None:
    """Read `If-Match`: None if it is absent or `*`, else the versions in it.

    Foreign and weak tags match no version (RFC 9110, 13.1.1).
    """
    if if_match is None or if_match.strip() == "*":
        return None
    given = ",".join(request.headers.getlist("if-match"))  # there may be several
    tags = (_VERSION_TAG.fullmatch(tag.strip()) for tag in given.split(","))
    return frozenset(int(tag[1]) for tag in tags if tag)


ExpectedVersions = Annotated[frozenset[int] | None, Depends(get_expected_versions)]
