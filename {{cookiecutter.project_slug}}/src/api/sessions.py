"""The credential of a user who is logged in: a token, as a bearer token or in a cookie."""

import re
from typing import Annotated

import structlog
from fastapi import Depends, Response
from starlette.requests import HTTPConnection

from src.api.deps import AppDatabase, state_of
from src.auth.passwords import Passwords
from src.core import origins
from src.db.models.user import LoginSession, User
from src.domain.errors import UnauthenticatedError
from src.domain.principal import Principal
from src.domain.user import CrossSiteRequestError, NotAUserError
from src.repositories.user import SESSION_LIFETIME, ActiveSession
from src.schemas.user import StartedSession, UserResponse
from src.services.session import SessionService
from src.services.user import UserService

log = structlog.get_logger(__name__)

# Browsers accept the prefix only from this host over HTTPS (or localhost), without `Domain`. So no
# other subdomain can set the cookie.
COOKIE = "__Host-session"
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
# Keys in the scope of a request.
_SESSION = "login_session"
_IS_BY_COOKIE = "login_session_by_cookie"
_MAX_CLIENT_LENGTH = 200


async def identify(connection: HTTPConnection, token: str | None) -> Principal | None:
    """Return the user of the bearer token; without one, of the cookie.

    Returns None if there is no active session. Raises UnauthenticatedError or CrossSiteRequestError
    for a cookie that is invalid or comes from another site.
    """
    if token is None:
        return await _identify_by_cookie(connection)
    return await _identify_by_token(connection, token)


async def _identify_by_token(connection: HTTPConnection, token: str) -> Principal | None:
    found = await SessionService.identify(state_of(connection)["database"], token)
    if found is None:
        return None
    principal, connection.scope[_SESSION] = found
    return principal


async def _identify_by_cookie(connection: HTTPConnection) -> Principal | None:
    values = _cookies(connection)
    if not values:
        return None
    if connection.scope["type"] == "websocket" or connection.scope["method"] not in SAFE_METHODS:
        ensure_same_origin(connection)
    principal = await _identify_by_token(connection, values[0]) if len(values) == 1 else None
    if principal is None:
        log.warning("credentials_rejected", kind="cookie", number=len(values))
        raise UnauthenticatedError
    connection.scope[_IS_BY_COOKIE] = True
    return principal


def _cookies(connection: HTTPConnection) -> list[str]:
    """Return all values of the cookie.

    Parsers that strip all whitespace would accept a name that starts with a no-break space. Another
    subdomain can set such a cookie, because browsers see no prefix in it.
    """
    pairs = [
        pair.strip(" \t").partition("=")
        for header in connection.headers.getlist("cookie")
        for pair in header.split(";")
    ]
    return [value for name, _, value in pairs if name == COOKIE]


def ensure_same_origin(connection: HTTPConnection) -> None:
    """Raise CrossSiteRequestError unless the request comes from a page of this service.

    Browsers add the cookie to requests of other sites too, and no page can change these headers.
    A page of an origin in CORS_ORIGINS may send it as well.
    """
    allowed = [
        each for each in state_of(connection)["settings"].CORS_ORIGINS if each != origins.ANY
    ]
    site, origin = (connection.headers.getlist(name) for name in ("sec-fetch-site", "origin"))
    if len(origin) == 1 and allowed:
        pattern = origins.pattern(allowed)
        if origin[0] in allowed or (pattern and re.fullmatch(pattern, origin[0])):
            return
    scheme = connection.scope["scheme"].replace("ws", "http")
    own = f"{scheme}://{connection.headers.get('host')}"
    if site not in (["same-origin"], ["none"]) if site else origin != [own]:
        log.warning("request_cross_site", sites=site, origins=origin)
        raise CrossSiteRequestError


async def get_current_session(connection: HTTPConnection) -> ActiveSession:
    """Return the session of this request. Raises NotAUserError for another kind of principal."""
    session: ActiveSession | None = connection.scope.get(_SESSION)
    if session is None:
        raise NotAUserError
    return session


CurrentSession = Annotated[ActiveSession, Depends(get_current_session)]


async def get_current_user(current: CurrentSession, database: AppDatabase) -> User:
    """Return the user who is logged in. It holds no connection while argon2 runs."""
    async with database.reads() as db:
        return await UserService.get_user(db, current.user_id)


CurrentUser = Annotated[User, Depends(get_current_user)]


async def get_passwords(connection: HTTPConnection) -> Passwords:
    return state_of(connection)["passwords"]


AppPasswords = Annotated[Passwords, Depends(get_passwords)]


async def get_client(connection: HTTPConnection) -> str:
    """Return how the client describes itself, as a label for the user."""
    text = connection.headers.get("user-agent", "")
    return "".join(filter(str.isprintable, text))[:_MAX_CLIENT_LENGTH]


Client = Annotated[str, Depends(get_client)]


def has_cookie(connection: HTTPConnection) -> bool:
    """Return whether the session of this request is the one of the cookie."""
    return _IS_BY_COOKIE in connection.scope


def started(
    response: Response, session: LoginSession, user: User, token: str, *, in_cookie: bool
) -> StartedSession:
    """Return the body of the response, which has the token only if the cookie does not."""
    response.headers["Cache-Control"] = "no-store"
    if in_cookie:
        lifetime = int(SESSION_LIFETIME.total_seconds())
        response.set_cookie(
            COOKIE, token, max_age=lifetime, path="/", secure=True, httponly=True, samesite="lax"
        )
    return StartedSession(
        id=session.id,
        token=None if in_cookie else token,
        user=UserResponse.model_validate(user),
    )


def delete_cookie(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")
