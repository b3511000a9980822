"""Writes to users. It runs outside of the request, as a task or after the response.

The token of a link is created here. So no message, table or log ever has it, and the request
takes the same time whether the account exists or not.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import Settings
from src.db import Database
from src.db.models.user import User
from src.domain.user import TokenPurpose, UserMail
from src.mail.delivery import deliver
from src.mail.errors import MailRefusedError
from src.mail.message import compose
from src.repositories.user import OneTimeTokenRepository, UserRepository

log = structlog.get_logger(__name__)

# Sends the mail to the user once the transaction of the session has committed.
SendMail = Callable[[AsyncSession, UserMail, UUID], Awaitable[None]]


@dataclass(frozen=True)
class Link:
    page: str  # below PUBLIC_URL
    lifetime: timedelta
    lifetime_text: str


LINKS = {
    TokenPurpose.VERIFY_EMAIL: Link("verify-email", timedelta(hours=24), "24 hours"),
    TokenPurpose.RESET_PASSWORD: Link("reset-password", timedelta(hours=1), "one hour"),
    TokenPurpose.CHANGE_EMAIL: Link("change-email", timedelta(hours=1), "one hour"),
}


@dataclass(frozen=True)
class _Draft:
    template: str
    to: str
    values: Mapping[str, str]


_NO_ONE = _Draft(
    UserMail.RESET_PASSWORD.value,
    "no-one@example.com",
    {"link": "", "token": "", "lifetime": ""},
)


async def send_user_mail(
    database: Database, settings: Settings, mail: UserMail, user_id: UUID
) -> None:
    """Send the mail, unless there is no reason for it any more.

    Before the link of CHANGE_EMAIL exists, the old address gets its notice. Otherwise, someone who
    knows the password could change the address first, and so get the notice too.

    Raises MailError if another attempt may succeed. A mail that the server refuses for good is only
    logged: mistyped addresses are no fault of the service.
    """
    if mail is UserMail.CHANGE_EMAIL:
        await send_user_mail(database, settings, UserMail.EMAIL_CHANGE_REQUESTED, user_id)
    async with database.transaction() as db:
        draft = await _write(db, settings, mail, user_id)
    if draft is None:
        log.info("mail_not_sent", mail=mail.value, user=str(user_id))
        # The process of the API may compose mails, and others could measure how long requests wait.
        compose(settings, _NO_ONE.template, to=_NO_ONE.to, **_NO_ONE.values)
        return
    try:
        await deliver(settings, compose(settings, draft.template, to=draft.to, **draft.values))
    except MailRefusedError as error:
        log.warning("mail_refused", mail=mail.value, user=str(user_id), cause=str(error))
    else:
        log.info("mail_sent", mail=mail.value, user=str(user_id))


async def _write(
    db: AsyncSession, settings: Settings, mail: UserMail, user_id: UUID
) -> _Draft | None:
    user = await UserRepository(db).get_for_update(user_id)
    if user is None or user.disabled_at is not None:
        return None
    if mail is UserMail.CHANGE_EMAIL:
        return await _change_of_email(db, settings, user)
    if mail not in {UserMail.SIGN_UP, UserMail.RESET_PASSWORD}:
        return _Draft(mail.value, user.email, {})
    if user.verified_at is None:
        return await _with_link(db, settings, "verify_email", user, TokenPurpose.VERIFY_EMAIL)
    template = "already_registered" if mail is UserMail.SIGN_UP else mail.value
    return await _with_link(db, settings, template, user, TokenPurpose.RESET_PASSWORD)


async def _change_of_email(db: AsyncSession, settings: Settings, user: User) -> _Draft | None:
    new_email = await OneTimeTokenRepository(db).requested_email(user.id)
    if new_email is None or await UserRepository(db).is_taken(new_email, user.id):
        return None
    template, purpose = UserMail.CHANGE_EMAIL.value, TokenPurpose.CHANGE_EMAIL
    return await _with_link(db, settings, template, user, purpose, new_email)


async def _with_link(
    db: AsyncSession,
    settings: Settings,
    template: str,
    user: User,
    purpose: TokenPurpose,
    new_email: str | None = None,
) -> _Draft:
    """Create a token. It replaces earlier ones of the user for this purpose."""
    link = LINKS[purpose]
    token = await OneTimeTokenRepository(db).issue(user.id, purpose, link.lifetime, new_email)
    values = {
        # Browsers do not send what follows `#`, so it is in no log of a server.
        "link": f"{settings.PUBLIC_URL}/{link.page}#token={token}",
        "token": token,
        "lifetime": link.lifetime_text,
    }
    return _Draft(template, new_email or user.email, values)
