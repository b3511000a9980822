"""Use cases of people who prove that they read a mailbox: they send a token of an e-mail."""

from uuid import UUID, uuid4

import structlog
from pydantic import SecretStr
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth.passwords import Passwords, check
from src.db import Database
from src.db.models.user import OneTimeToken, User
from src.domain.user import InvalidTokenError, TokenPurpose, UserMail, WrongPasswordError
from src.repositories.user import OneTimeTokenRepository, UserRepository
from src.services.login_throttle import may_mail, trust_address
from src.services.session import confirm_own_password
from src.services.user import set_password
from src.services.user_mail import LINKS, SendMail

log = structlog.get_logger(__name__)


class OneTimeTokenService:
    @staticmethod
    async def request_password_reset(
        database: Database, send_mail: SendMail, email: str, address: str
    ) -> None:
        """Write to the user with this address. Raises TooManyRequestsError.

        Without such a user the steps are the same, up to a mail that finds no user.
        """
        if not await may_mail(database, UserMail.RESET_PASSWORD, email, address):
            return
        async with database.transaction() as db:
            user_id = await UserRepository(db).find_id(email)
            await send_mail(db, UserMail.RESET_PASSWORD, user_id or uuid4())

    @staticmethod
    async def set_password(
        database: Database,
        passwords: Passwords,
        send_mail: SendMail,
        *,
        token: SecretStr,
        purpose: TokenPurpose,
        password: SecretStr,
        service: str,
        address: str,
    ) -> None:
        """Set the password of the token's user, whose address is then verified.

        All sessions end. A password that is not acceptable does not use up the token. Raises
        InvalidTokenError, UnacceptablePasswordError or OverloadedError.
        """
        async with database.reads() as db:
            user = await _find_user(db, token, purpose)
        check(password, user.email, service)
        password_hash = await passwords.hash(password)
        async with database.transaction() as db:
            user, _ = await _redeem(db, user.id, token, purpose)
            had_password = user.password_hash is not None
            user.verified_at = user.verified_at or func.now()
            await set_password(db, user, password_hash)
            await trust_address(db, user.email, address)
            if had_password:
                await send_mail(db, UserMail.PASSWORD_CHANGED, user.id)
        log.info("password_set", user=str(user.id), purpose=purpose.value)

    @staticmethod
    async def request_email_change(
        database: Database,
        passwords: Passwords,
        send_mail: SendMail,
        user: User,
        *,
        new_email: str,
        password: SecretStr,
        address: str,
    ) -> None:
        """Write to both addresses. Raises WrongPasswordError, TooManyRequestsError or OverloadedError.

        The response does not tell whether the new address has an account.
        """
        confirmed = await confirm_own_password(database, passwords, user, password, address)
        is_allowed = await may_mail(database, UserMail.CHANGE_EMAIL, new_email, address)
        purpose = TokenPurpose.CHANGE_EMAIL
        async with database.transaction() as db:
            if await confirmed.lock(db) is None:
                raise WrongPasswordError
            if not is_allowed:
                return
            # No one gets this token. It stores the address until the mail gets another one.
            lifetime = LINKS[purpose].lifetime
            await OneTimeTokenRepository(db).issue(user.id, purpose, lifetime, new_email)
            await send_mail(db, UserMail.CHANGE_EMAIL, user.id)
        log.info("email_change_requested", user=str(user.id))

    @staticmethod
    async def change_email(database: Database, token: SecretStr) -> None:
        """Give the token's user the new address. Raises InvalidTokenError.

        It is also raised if the address has got another account since.
        """
        purpose = TokenPurpose.CHANGE_EMAIL
        async with database.transaction() as db:
            found = await _find_user(db, token, purpose)
            user, redeemed = await _redeem(db, found.id, token, purpose)
            new_email = str(redeemed.new_email)
            if not await UserRepository(db).set_email(user.id, new_email):
                log.info("token_rejected", user=str(user.id), reason="the address is taken")
                raise InvalidTokenError
            # Those that were sent to the old address.
            await OneTimeTokenRepository(db).revoke(user.id)
        log.info("email_changed", user=str(user.id))


async def _find_user(db: AsyncSession, token: SecretStr, purpose: TokenPurpose) -> User:
    user = await OneTimeTokenRepository(db).find_user(token.get_secret_value(), purpose)
    if user is None:
        log.warning("token_rejected", purpose=purpose.value)
        raise InvalidTokenError
    return user


async def _redeem(
    db: AsyncSession, user_id: UUID, token: SecretStr, purpose: TokenPurpose
) -> tuple[User, OneTimeToken]:
    """Lock the user, then use up the token: other transactions lock in the same order."""
    user = await UserRepository(db).get_for_update(user_id)
    redeemed = await OneTimeTokenRepository(db).redeem(token.get_secret_value(), purpose)
    if user is None or user.disabled_at is not None or redeemed is None:
        log.warning("token_rejected", purpose=purpose.value, user=str(user_id))
        raise InvalidTokenError
    return user, redeemed
