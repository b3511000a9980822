"""Use cases of log-in sessions."""

from dataclasses import dataclass
from uuid import UUID

import structlog
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth.passwords import Passwords
from src.auth.tokens import is_session_token
from src.db import Database, DatabaseUnavailableError
from src.db.models.user import LoginSession, User
from src.domain.principal import ROLES, Principal, PrincipalKind
from src.domain.user import LoginFailedError, SessionNotFoundError, WrongPasswordError
from src.repositories.user import ActiveSession, LoginSessionRepository, UserRepository
from src.services.login_throttle import Attempt

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Confirmed:
    """A password that was right. Call `lock` before any change that it allows."""

    user_id: UUID
    password_hash: str
    attempt: Attempt

    async def lock(self, db: AsyncSession) -> User | None:
        """Return the account, locked; None if its password has changed since, or it is disabled."""
        user = await UserRepository(db).get_for_update(self.user_id)
        if user is None or user.disabled_at or user.password_hash != self.password_hash:
            return None
        await self.attempt.succeed(db)
        return user


async def confirm_password(
    database: Database, passwords: Passwords, email: str, password: SecretStr, address: str
) -> Confirmed | None:
    """Return None if the password is wrong, or the account is unknown or cannot log in.

    All of these take the same time. Needs no transaction of the request, and holds no connection
    while argon2 runs. Raises TooManyRequestsError or OverloadedError.
    """
    attempt = await Attempt.count(database, email, address)
    async with database.reads() as db:
        user = await UserRepository(db).get_by_email(email)
    stored = user.password_hash if user else None
    is_right = await passwords.verify(stored, password)
    can_log_in = user is not None and user.verified_at is not None and user.disabled_at is None
    if user is None or stored is None or not (is_right and can_log_in):
        log.warning(
            "credentials_rejected",
            kind="password",
            user=str(user.id) if user else None,
            reason="wrong password" if not is_right else "account is disabled or not verified",
        )
        return None
    return Confirmed(user.id, stored, attempt)


async def confirm_own_password(
    database: Database, passwords: Passwords, user: User, password: SecretStr, address: str
) -> Confirmed:
    """Raises WrongPasswordError if the password is wrong, or if another account has the address now.

    Also raises TooManyRequestsError or OverloadedError.
    """
    confirmed = await confirm_password(database, passwords, user.email, password, address)
    if confirmed is None or confirmed.user_id != user.id:
        raise WrongPasswordError
    return confirmed


class SessionService:
    @staticmethod
    async def log_in(
        database: Database,
        passwords: Passwords,
        *,
        email: str,
        password: SecretStr,
        address: str,
        client: str,
    ) -> tuple[LoginSession, User, str]:
        """Start a session, and return it with its user and token. Raises LoginFailedError."""
        confirmed = await confirm_password(database, passwords, email, password, address)
        if confirmed is None:
            raise LoginFailedError
        new_hash = None
        if passwords.needs_rehash(confirmed.password_hash):
            new_hash = await passwords.hash(password)
        async with database.transaction() as db:
            user = await confirmed.lock(db)
            if user is None:
                raise LoginFailedError
            if new_hash is not None:
                user.password_hash = new_hash
            session, token = await LoginSessionRepository(db).start(user.id, client)
        log.info("session_started", user=str(user.id), session=str(session.id))
        return session, user, token

    @staticmethod
    async def identify(database: Database, token: str) -> tuple[Principal, ActiveSession] | None:
        """Return the user whose session has this token; None if there is no such session.

        PostgreSQL decides for each request, so that the end of a session or a change of the role is
        effective in all processes with its commit.
        """
        if not is_session_token(token):
            return None
        async with database.reads() as db:
            sessions = LoginSessionRepository(db)
            session = await sessions.find_active(token)
            if session is None:
                return None
            if session.is_use_due:
                try:
                    await sessions.note_use(session.id)
                except DatabaseUnavailableError as error:  # it may be read-only
                    log.warning("session_use_not_stored", cause=str(error))
        principal = Principal(PrincipalKind.USER, str(session.user_id), ROLES[session.role])
        return principal, session

    @staticmethod
    async def end(db: AsyncSession, user_id: UUID, session_id: UUID) -> None:
        """Raises SessionNotFoundError."""
        if not await LoginSessionRepository(db).end(user_id, session_id):
            raise SessionNotFoundError(id=session_id)
