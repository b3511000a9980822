"""Accounts: sign-up, one's own account, and their administration."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response, status

from src.api import sessions
from src.api.auth import CurrentPrincipal, allow_anonymous, require
from src.api.deps import AppDatabase, AppSettings, DbSession, NoIdempotencyKey, ReadSession
from src.api.mails import AppMails
from src.api.openapi import problems
from src.api.rate_limits import address_of
from src.auth.passwords import UnacceptablePasswordError
from src.db.models.user import User
from src.domain.errors import OverloadedError, TooManyRequestsError
from src.domain.principal import Scope
from src.domain.user import (
    LastAdminError,
    NotAUserError,
    RoleTooPowerfulError,
    SignUpClosedError,
    UserNotFoundError,
    WrongPasswordError,
)
from src.schemas.user import (
    Accepted,
    PasswordChange,
    PasswordConfirmation,
    SignUp,
    StartedSession,
    UserListQuery,
    UserPage,
    UserResponse,
    UserUpdate,
)
from src.services.user import UserService

UserId = Annotated[UUID, Path(description="ID of the user.")]
Address = Annotated[str, Depends(address_of)]
_PASSWORD_ERRORS = (NotAUserError, WrongPasswordError, TooManyRequestsError, OverloadedError)
_SIGNED_UP = "If this address can have an account, it gets an e-mail with the next step."

router = APIRouter(prefix="/users", tags=["users"])


@router.post(
    "/",
    status_code=status.HTTP_202_ACCEPTED,
    dependencies=[NoIdempotencyKey],  # each request sends at most one e-mail
    responses=problems(SignUpClosedError, TooManyRequestsError),
)
@allow_anonymous
async def sign_up(
    body: SignUp,
    database: AppDatabase,
    mails: AppMails,
    settings: AppSettings,
    address: Address,
) -> Accepted:
    """Request an account for an e-mail address.

    The e-mail has a link to set the password. If the address has an account already, the e-mail
    says so; the response does not.
    """
    if not settings.SIGN_UP_ENABLED:
        raise SignUpClosedError
    await UserService.sign_up(database, mails, body.email, address)
    return Accepted(detail=_SIGNED_UP)


@router.get("/me", response_model=UserResponse, responses=problems(NotAUserError))
async def get_own_account(user: sessions.CurrentUser) -> User:
    """Return the user who is logged in."""
    return user


@router.post(
    "/me/password",
    dependencies=[NoIdempotencyKey],  # the response has a secret
    responses=problems(*_PASSWORD_ERRORS, UnacceptablePasswordError),
)
async def change_password(
    body: PasswordChange,
    user: sessions.CurrentUser,
    database: AppDatabase,
    passwords: sessions.AppPasswords,
    mails: AppMails,
    settings: AppSettings,
    address: Address,
    client: sessions.Client,
    request: Request,
    response: Response,
) -> StartedSession:
    """Change the password. All sessions end; the response has a new one, as log-in does."""
    session, token = await UserService.change_password(
        database,
        passwords,
        mails,
        user,
        current=body.current_password,
        new=body.new_password,
        service=settings.PROJECT_NAME,
        address=address,
        client=client,
    )
    in_cookie = sessions.has_cookie(request)
    return sessions.started(response, session, user, token, in_cookie=in_cookie)


@router.post(
    "/me/deletion",
    status_code=status.HTTP_204_NO_CONTENT,
    dependencies=[NoIdempotencyKey],
    responses=problems(*_PASSWORD_ERRORS, LastAdminError),
)
async def delete_own_account(
    body: PasswordConfirmation,
    user: sessions.CurrentUser,
    database: AppDatabase,
    passwords: sessions.AppPasswords,
    address: Address,
    response: Response,
) -> None:
    """Delete the account of the user who is logged in, with all its sessions."""
    await UserService.delete_user(database, passwords, user, body.password, address)
    sessions.delete_cookie(response)


@router.get("/", dependencies=[require(Scope.USERS_READ)])
async def list_users(query: Annotated[UserListQuery, Query()], db: ReadSession) -> UserPage:
    """List users, newest first."""
    users, next_cursor = await UserService.list_users(db, query)
    return UserPage(
        users=[UserResponse.model_validate(each) for each in users], next_cursor=next_cursor
    )


@router.get(
    "/{user_id}",
    response_model=UserResponse,
    dependencies=[require(Scope.USERS_READ)],
    responses=problems(UserNotFoundError),
)
async def get_user(user_id: UserId, db: ReadSession) -> User:
    return await UserService.get_user(db, user_id)


@router.patch(
    "/{user_id}",
    response_model=UserResponse,
    dependencies=[require(Scope.USERS_WRITE)],
    responses=problems(UserNotFoundError, LastAdminError, RoleTooPowerfulError),
)
async def update_user(
    user_id: UserId, changes: UserUpdate, db: DbSession, principal: CurrentPrincipal
) -> User:
    """Change the role of a user, or disable or enable the account.

    Both are effective for the next request of the user. You cannot manage users, or assign a role,
    with scopes that you do not have.
    """
    return await UserService.update_user(db, user_id, changes, principal.scopes)
