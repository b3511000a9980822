"""What endpoints may ask for: sessions, settings, the caller's right to call."""

import re
import secrets
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Request, Security, status
from fastapi.security import APIKeyHeader
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import Settings
from src.db.session import ReadSession as _ReadSession

# Where `IdempotencyMiddleware` puts the session whose transaction it will end by itself.
SHARED_TRANSACTION = "shared_transaction"


async def _transaction(request: Request) -> AsyncGenerator[AsyncSession]:
    shared: AsyncSession | None = getattr(request.state, SHARED_TRANSACTION, None)
    if shared is not None:
        try:
            yield shared
        except Exception:
            await shared.rollback()  # whatever answer a handler makes of the error
            raise
        return
    async with request.state.database.transaction() as session:
        yield session


# scope="function": commit before the answer leaves, so that a failing one is never a lost 201.
DbSession = Annotated[AsyncSession, Depends(_transaction, scope="function")]


async def get_db_session(session: DbSession) -> AsyncSession:
    """Give the request's transaction; it commits before the answer leaves.

    The same session as `DbSession` gives, for those who write `Depends(get_db_session)`.
    """
    return session


async def get_read_session(request: Request) -> AsyncGenerator[_ReadSession]:
    session = request.state.database.reads()
    try:
        yield session
    finally:
        # FastAPI shields this from cancellation; `async with` would start a task for that as well.
        await session.close()


ReadSession = Annotated[_ReadSession, Depends(get_read_session, scope="function")]


async def get_app_settings(request: Request) -> Settings:
    settings: Settings = request.state.settings
    return settings


AppSettings = Annotated[Settings, Depends(get_app_settings)]

_api_key_header = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="One of the keys in API_KEYS."
)


async def require_api_key(
    settings: AppSettings, given: Annotated[str | None, Security(_api_key_header)]
) -> None:
    """Let only holders of a key in.

    Everyone is let in where no key is configured, which `Settings` allows in development alone.
    """
    if not settings.API_KEYS:
        return
    # Compare with every key, in constant time each, so that timing tells nothing.
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
        str | None,
        Header(description='The ETag that the change is based on, such as `"3"`.'),
    ] = None,
) -> frozenset[int] | None:
    """Read `If-Match`: None if it is absent or `*`, else the versions that it names.

    Tags that are not ours match no version, and neither do weak ones (RFC 9110, 13.1.1).
    """
    if if_match is None or if_match.strip() == "*":
        return None
    given = ",".join(request.headers.getlist("if-match"))  # it may stand on several lines
    tags = (_VERSION_TAG.fullmatch(tag.strip()) for tag in given.split(","))
    return frozenset(int(tag[1]) for tag in tags if tag)


ExpectedVersions = Annotated[frozenset[int] | None, Depends(get_expected_versions)]
