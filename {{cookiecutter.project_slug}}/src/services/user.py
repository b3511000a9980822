from collections.abc import Sequence
from uuid import UUID

import structlog
from pydantic import SecretStr
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth.passwords import Passwords, check
from src.db import Database
from src.db.models.user import LoginSession, User
from src.domain.principal import ROLES, Role, Scope
from src.domain.user import (
    RoleTooPowerfulError,
    UserExistsError,
    UserMail,
    UserNotFoundError,
    WrongPasswordError,
)
from src.repositories.user import LoginSessionRepository, OneTimeTokenRepository, UserRepository
from src.schemas.user import UserListQuery, UserUpdate
from src.services.login_throttle import may_mail
from src.services.session import confirm_own_password
from src.services.user_mail import SendMail

log = structlog.get_logger(__name__)


class UserService:
    """Use cases of accounts."""

    @staticmethod
    async def sign_up(database: Database, send_mail: SendMail, email: str, address: str) -> None:
        """Send a token to the address, to set the password of a new or of the existing account.

        The steps are the same in both cases. Raises TooManyRequestsError.
        """
        if not await may_mail(database, UserMail.SIGN_UP, email, address):
            return
        async with database.transaction() as db:
            user = await UserRepository(db).get_or_add(email)
            await send_mail(db, UserMail.SIGN_UP, user.id)

    @staticmethod
    async def create_user(db: AsyncSession, email: str, password_hash: str, role: Role) -> User:
        """Create a verified account. Raises UserExistsError."""
        user = await UserRepository(db).get_or_add(email)
        if user.verified_at is not None:
            raise UserExistsError(email=email)
        user.role, user.verified_at = role, func.now()
        await set_password(db, user, password_hash)
        log.info("user_created", user=str(user.id), role=role)
        return user

    @staticmethod
    async def get_user(db: AsyncSession, user_id: UUID) -> User:
        """Raises UserNotFoundError."""
        return await UserRepository(db).get_or_raise(user_id, UserNotFoundError)

    @staticmethod
    async def list_users(
        db: AsyncSession, query: UserListQuery
    ) -> tuple[Sequence[User], UUID | None]:
        return await UserRepository(db).list_page(
            query.email, limit=query.limit, cursor=query.cursor
        )

    @staticmethod
    async def update_user(
        db: AsyncSession, user_id: UUID, changes: UserUpdate, scopes: frozenset[Scope]
    ) -> User:
        """Change the role, or disable or enable the account, as a principal with these scopes.

        Raises UserNotFoundError, LastAdminError or RoleTooPowerfulError.
        """
        given = changes.model_dump()
        if given.get("disabled") or given.get("role", Role.ADMIN) is not Role.ADMIN:
            user = await UserRepository(db).get_without_last_admin(user_id)
        else:
            user = await UserRepository(db).get_for_update(user_id)
        if user is None:
            raise UserNotFoundError(id=user_id)
        _ensure_may_manage(scopes, user.role, given.get("role", user.role))
        user.role = given.get("role", user.role)
        if "disabled" in given:
            await _set_disabled(db, user, disabled=given["disabled"])
        await db.flush()
        await db.refresh(user, ["disabled_at"])
        log.info("user_changed", user=str(user.id), **given)
        return user

    @staticmethod
    async def change_password(
        database: Database,
        passwords: Passwords,
        send_mail: SendMail,
        user: User,
        *,
        current: SecretStr,
        new: SecretStr,
        service: str,
        address: str,
        client: str,
    ) -> tuple[LoginSession, str]:
        """End all sessions, and return a new one with its token.

        Raises WrongPasswordError or UnacceptablePasswordError.
        """
        check(new, user.email, service)
        confirmed = await confirm_own_password(database, passwords, user, current, address)
        new_hash = await passwords.hash(new)
        async with database.transaction() as db:
            locked = await confirmed.lock(db)
            if locked is None:
                raise WrongPasswordError
            await set_password(db, locked, new_hash)
            started = await LoginSessionRepository(db).start(locked.id, client)
            await send_mail(db, UserMail.PASSWORD_CHANGED, user.id)
        log.info("password_changed", user=str(user.id))
        return started

    @staticmethod
    async def delete_user(
        database: Database, passwords: Passwords, user: User, password: SecretStr, address: str
    ) -> None:
        """Raises WrongPasswordError or LastAdminError."""
        confirmed = await confirm_own_password(database, passwords, user, password, address)
        async with database.transaction() as db:
            await UserRepository(db).get_without_last_admin(user.id)
            locked = await confirmed.lock(db)
            if locked is None:
                raise WrongPasswordError
            await UserRepository(db).delete(locked)
        log.info("user_deleted", user=str(user.id))


async def set_password(db: AsyncSession, user: User, password_hash: str) -> None:
    """Set the password of a locked account. All its sessions and unused one-time tokens end."""
    user.password_hash = password_hash
    await LoginSessionRepository(db).end_all(user.id)
    await OneTimeTokenRepository(db).revoke(user.id)
    await db.flush()


async def _set_disabled(db: AsyncSession, user: User, *, disabled: bool) -> None:
    if not disabled:
        user.disabled_at = None
    elif user.disabled_at is None:
        user.disabled_at = func.now()
        await LoginSessionRepository(db).end_all(user.id)
        await OneTimeTokenRepository(db).revoke(user.id)


def _ensure_may_manage(scopes: frozenset[Scope], *roles: Role) -> None:
    """Without this, a principal with few scopes could give itself all of them."""
    for role in roles:
        if not ROLES[role] <= scopes:
            raise RoleTooPowerfulError(role=role)
