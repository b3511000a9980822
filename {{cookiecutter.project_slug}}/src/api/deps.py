"""Dependencies for endpoints: database sessions, settings, the API key, `If-Match`."""

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

# Headers that identify the caller.
CREDENTIAL_HEADERS = (b"authorization", b"cookie", b"x-api-key")


def _state_of(request: Request) -> State:
    return cast(State, request.scope["state"])


async def _transaction(request: Request) -> AsyncGenerator[AsyncSession]:
    """Open a transaction, unless `IdempotencyMiddleware` has opened it and will commit it."""
    state = _state_of(request)
    session = state.get("transaction")
    if session is None:
        async with state["database"].transaction() as session:
            yield session
        return
    try:
        yield session
    except Exception:
        await session.rollback()  # an exception handler may still return a response below 400
        raise


async def get_db_session(
    # scope="function" commits before the response is sent, so a failed commit never sends a 201.
    session: Annotated[AsyncSession, Depends(_transaction, scope="function")],
) -> AsyncSession:
    """Return the request's session. It commits before the response is sent."""
    return session


DbSession = Annotated[AsyncSession, Depends(get_db_session)]


async def get_read_session(request: Request) -> AsyncGenerator[ReadOnlyAsyncSession]:
    """Open a session for reads only. Each statement runs by itself, without a transaction."""
    session = _state_of(request)["database"].reads()
    try:
        yield session
    finally:
        # FastAPI already shields this from cancellation. `async with` would add a task to do it.
        await session.close()


ReadSession = Annotated[ReadOnlyAsyncSession, Depends(get_read_session, scope="function")]


async def get_app_settings(request: Request) -> Settings:
    return _state_of(request)["settings"]


AppSettings = Annotated[Settings, Depends(get_app_settings)]

_api_key_header = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="One of the keys in the setting `API_KEYS`."
)


async def require_api_key(
    settings: AppSettings, given: Annotated[str | None, Security(_api_key_header)]
) -> None:
    """Reject requests without a valid key with 401, if API_KEYS is not empty.

    Only development and tests may start with an empty API_KEYS (see `Settings`).
    """
    if not settings.API_KEYS:
        return
    # Compare with every key, each in constant time: the duration must not reveal a match.
    known = [key.get_secret_value().encode() for key in settings.API_KEYS]
    matches = [secrets.compare_digest((given or "").encode(), key) for key in known]
    if not any(matches):
        raise HTTPException(
            status.HTTP_401_UNAUTHORIZED,
            "Send a valid API key in the X-API-Key header.",
            headers={"WWW-Authenticate": 'ApiKey header="X-API-Key"'},
        )


ApiKey = Depends(require_api_key)

_VERSION_TAG = re.compile(r'"([1-9][0-9]{0,8})"')


async def get_expected_versions(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(description="The `ETag` of the version that you want to change.", examples=['"3"']),
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
