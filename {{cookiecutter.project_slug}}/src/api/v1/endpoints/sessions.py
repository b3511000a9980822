"""Log-in, log-out, and the sessions of the user."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response, status

from src.api import sessions
from src.api.auth import allow_anonymous
from src.api.deps import AppDatabase, DbSession, NoIdempotencyKey, ReadSession
from src.api.openapi import problems
from src.api.rate_limits import address_of
from src.domain.errors import OverloadedError, TooManyRequestsError
from src.domain.user import (
    CrossSiteRequestError,
    LoginFailedError,
    NotAUserError,
    SessionNotFoundError,
)
from src.repositories.user import LoginSessionRepository
from src.schemas.user import Login, SessionList, SessionResponse, StartedSession
from src.services.session import SessionService

router = APIRouter(prefix="/sessions", tags=["sessions"])


@router.post(
    "/",
    status_code=status.HTTP_201_CREATED,
    dependencies=[NoIdempotencyKey],  # the response has a secret
    responses=problems(
        LoginFailedError, CrossSiteRequestError, TooManyRequestsError, OverloadedError
    ),
)
@allow_anonymous
async def log_in(
    login: Login,
    database: AppDatabase,
    passwords: sessions.AppPasswords,
    address: Annotated[str, Depends(address_of)],
    client: sessions.Client,
    request: Request,
    response: Response,
) -> StartedSession:
    """Log in, and get a token for other requests; or, for web pages, a cookie.

    The response to a wrong password does not tell whether the account exists. After some failed
    attempts, the next one has to wait, up to 15 minutes.
    """
    if login.cookie:
        sessions.ensure_same_origin(request)
    session, user, token = await SessionService.log_in(
        database,
        passwords,
        email=login.email,
        password=login.password,
        address=address,
        client=client,
    )
    return sessions.started(response, session, user, token, in_cookie=login.cookie)


@router.get("/", responses=problems(NotAUserError))
async def list_sessions(
    current: sessions.CurrentSession, db: ReadSession, response: Response
) -> SessionList:
    """List where you are logged in."""
    response.headers["Cache-Control"] = "no-store"
    found = await LoginSessionRepository(db).list_active(current.user_id)
    return SessionList(
        sessions=[
            SessionResponse(
                id=each.id,
                client=each.client,
                created_at=each.created_at,
                last_used_at=each.last_used_at,
                current=each.id == current.id,
            )
            for each in found
        ]
    )


@router.delete("/", status_code=status.HTTP_204_NO_CONTENT, responses=problems(NotAUserError))
async def log_out_everywhere(
    current: sessions.CurrentSession, db: DbSession, response: Response
) -> None:
    """End all your sessions, with this one."""
    await LoginSessionRepository(db).end_all(current.user_id)
    sessions.delete_cookie(response)


@router.delete(
    "/current", status_code=status.HTTP_204_NO_CONTENT, responses=problems(NotAUserError)
)
async def log_out(
    current: sessions.CurrentSession, db: DbSession, request: Request, response: Response
) -> None:
    """End this session."""
    await SessionService.end(db, current.user_id, current.id)
    if sessions.has_cookie(request):
        sessions.delete_cookie(response)


@router.delete(
    "/{session_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(NotAUserError, SessionNotFoundError),
)
async def end_session(
    session_id: Annotated[UUID, Path(description="ID of the session.")],
    current: sessions.CurrentSession,
    db: DbSession,
) -> None:
    """End one of your sessions, for example that of a lost device."""
    await SessionService.end(db, current.user_id, session_id)
