"""What people do with the token of an e-mail: set a password, change their address."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response, status

from src.api import sessions
from src.api.auth import allow_anonymous
from src.api.deps import AppDatabase, AppSettings, NoIdempotencyKey
from src.api.mails import AppMails
from src.api.openapi import problems
from src.api.rate_limits import address_of
from src.auth.passwords import UnacceptablePasswordError
from src.domain.errors import OverloadedError, TooManyRequestsError
from src.domain.user import InvalidTokenError, NotAUserError, TokenPurpose, WrongPasswordError
from src.schemas.one_time_token import (
    EmailChange,
    EmailChangeRequest,
    PasswordReset,
    PasswordResetRequest,
)
from src.schemas.user import Accepted
from src.services.one_time_token import OneTimeTokenService

Address = Annotated[str, Depends(address_of)]
_RESET_REQUESTED = "If this address has an account, it gets an e-mail with the next step."
_CHANGE_REQUESTED = "If the address can be used, it gets an e-mail with the next step."
_SET_PASSWORD = problems(InvalidTokenError, UnacceptablePasswordError, OverloadedError)


async def forbid_storing(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


@dataclass(frozen=True)
class SetPassword:
    """A dependency of the endpoints that set a password with a token."""

    database: AppDatabase
    passwords: sessions.AppPasswords
    mails: AppMails
    settings: AppSettings
    address: Address

    async def __call__(self, body: PasswordReset, purpose: TokenPurpose) -> None:
        await OneTimeTokenService.set_password(
            self.database,
            self.passwords,
            self.mails,
            token=body.token,
            purpose=purpose,
            password=body.password,
            service=self.settings.PROJECT_NAME,
            address=self.address,
        )


# Requests and responses have secrets, so no idempotency key stores them.
router = APIRouter(
    prefix="/users", tags=["users"], dependencies=[NoIdempotencyKey, Depends(forbid_storing)]
)


@router.post("/verify-email", status_code=status.HTTP_204_NO_CONTENT, responses=_SET_PASSWORD)
@allow_anonymous
async def verify_email(
    body: PasswordReset, set_password: Annotated[SetPassword, Depends()]
) -> None:
    """Confirm the address of a new account, and set its password."""
    await set_password(body, TokenPurpose.VERIFY_EMAIL)


@router.post(
    "/forgot-password",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(TooManyRequestsError),
)
@allow_anonymous
async def request_password_reset(
    body: PasswordResetRequest, database: AppDatabase, mails: AppMails, address: Address
) -> Accepted:
    """Request an e-mail with a link to set a new password.

    The response is the same whether the account exists or not. If the account's address is not yet
    confirmed, the e-mail asks for that.
    """
    await OneTimeTokenService.request_password_reset(database, mails, body.email, address)
    return Accepted(detail=_RESET_REQUESTED)


@router.post("/reset-password", status_code=status.HTTP_204_NO_CONTENT, responses=_SET_PASSWORD)
@allow_anonymous
async def reset_password(
    body: PasswordReset, set_password: Annotated[SetPassword, Depends()]
) -> None:
    """Set a new password with the token of an e-mail. All sessions of the user end."""
    await set_password(body, TokenPurpose.RESET_PASSWORD)


@router.post(
    "/me/email",
    status_code=status.HTTP_202_ACCEPTED,
    responses=problems(NotAUserError, WrongPasswordError, TooManyRequestsError, OverloadedError),
)
async def request_email_change(
    body: EmailChangeRequest,
    user: sessions.CurrentUser,
    database: AppDatabase,
    passwords: sessions.AppPasswords,
    mails: AppMails,
    address: Address,
) -> Accepted:
    """Request another e-mail address.

    The new address gets an e-mail with a token, and the old one a notice. The response does not
    tell whether the new address has an account.
    """
    await OneTimeTokenService.request_email_change(
        database,
        passwords,
        mails,
        user,
        new_email=body.email,
        password=body.password,
        address=address,
    )
    return Accepted(detail=_CHANGE_REQUESTED)


@router.post(
    "/change-email",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(InvalidTokenError),
)
@allow_anonymous
async def change_email(body: EmailChange, database: AppDatabase) -> None:
    """Confirm the new address with the token of the e-mail to it."""
    await OneTimeTokenService.change_email(database, body.token)
