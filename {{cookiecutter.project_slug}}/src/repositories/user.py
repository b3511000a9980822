"""The tables of accounts. All times are from PostgreSQL, since clocks of processes may differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    and_,
    bindparam,
    case,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth import tokens
from src.db.models.user import LoginSession, LoginThrottle, OneTimeToken, User
from src.domain.principal import Role
from src.domain.user import LastAdminError, TokenPurpose
from src.repositories.base import Repository

SESSION_IDLE = timedelta(days=14)
SESSION_LIFETIME = timedelta(days=90)
# `last_used_at` is written only if it is older: a write for each request would be expensive.
USE_PRECISION = timedelta(minutes=1)
MAX_SESSIONS = 100  # of a user; a log-in ends the one that was not used for longest
UNVERIFIED_LIFETIME = timedelta(days=7)
PRUNE_LIMIT = 10
FIRST_DELAY = timedelta(seconds=5)


async def _prune(session: AsyncSession, model: Any, *expired: ColumnElement[bool]) -> None:
    """Delete a few expired rows. Each new row does this, so they do not accumulate.

    Do this last in a transaction, which then waits for no lock while others wait for it.
    """
    rows = select(model.id).where(*expired).limit(PRUNE_LIMIT).with_for_update(skip_locked=True)
    await _delete(session, model, model.id.in_(rows))


async def _delete(session: AsyncSession, model: Any, *conditions: ColumnElement[bool]) -> int:
    statement = delete(model).where(*conditions)
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], result).rowcount


class UserRepository(Repository[User]):
    model = User

    # Anyone can sign up with an address. Only a confirmed account has a claim to it.
    _is_unclaimed = and_(User.verified_at.is_(None), User.disabled_at.is_(None))

    async def get_by_email(self, email: str) -> User | None:
        return await self.session.scalar(select(User).where(User.email_key == email.lower()))

    async def find_id(self, email: str) -> UUID | None:
        return await self.session.scalar(select(User.id).where(User.email_key == email.lower()))

    async def is_taken(self, email: str, key: UUID) -> bool:
        """Return whether the user with this key cannot get the address."""
        found = select(User.id).where(
            User.email_key == email.lower(), User.id != key, ~self._is_unclaimed
        )
        return await self.session.scalar(found) is not None

    async def set_email(self, key: UUID, email: str) -> bool:
        """Return False if the address is taken."""
        unclaimed = (User.email_key == email.lower(), User.id != key, self._is_unclaimed)
        try:
            async with self.session.begin_nested():
                await _delete(self.session, User, *unclaimed)
                await self.session.execute(update(User).where(User.id == key).values(email=email))
        except IntegrityError:
            return False
        return True

    async def get_or_add(self, email: str) -> User:
        """Return the account with this address, locked; a new one if there is none.

        Both cases need the same statements, so that the duration does not tell which one it was.
        """
        new = insert(User).values(email=email, role=Role.MEMBER)
        found = new.on_conflict_do_update(
            index_elements=[User.email_key], set_={"email": User.email}
        ).returning(User)
        result = await self.session.scalars(found, execution_options={"populate_existing": True})
        user = result.one()
        valid = (OneTimeToken.user_id == User.id) & (OneTimeToken.expires_at > func.now())
        await _prune(
            self.session,
            User,
            User.verified_at.is_(None),
            User.created_at < func.now() - UNVERIFIED_LIFETIME,
            User.id != user.id,
            ~select(OneTimeToken.id).where(valid).exists(),
        )
        return user

    async def list_page(
        self, email: str | None, *, limit: int, cursor: UUID | None
    ) -> tuple[Sequence[User], UUID | None]:
        """Return a page of all accounts, or the one with this address."""
        statement = select(User)
        if email is not None:
            statement = statement.where(User.email_key == email.lower())
        return await self.paginate(statement, limit=limit, cursor=cursor)

    async def get_without_last_admin(self, key: UUID) -> User | None:
        """Read and lock an account that may then lose the role or be deleted.

        Raises LastAdminError. Two administrators cannot remove each other at the same time: each
        transaction locks all administrators first, in the same order.
        """
        admins = select(User.id).where(
            User.role == Role.ADMIN, User.verified_at.is_not(None), User.disabled_at.is_(None)
        )
        locked = admins.order_by(User.id).with_for_update(key_share=True)
        found = (await self.session.scalars(locked)).all()
        if found == [key]:
            raise LastAdminError
        return await self.get_for_update(key)


@dataclass(frozen=True)
class ActiveSession:
    id: UUID
    user_id: UUID
    role: Role
    is_use_due: bool  # whether `last_used_at` should be written


class LoginSessionRepository(Repository[LoginSession]):
    model = LoginSession

    _is_active = (
        LoginSession.last_used_at > func.now() - SESSION_IDLE,
        LoginSession.created_at > func.now() - SESSION_LIFETIME,
    )
    _by_token = (
        select(
            LoginSession.id,
            LoginSession.user_id,
            User.role,
            LoginSession.last_used_at < func.now() - USE_PRECISION,
        )
        .join(User, User.id == LoginSession.user_id)
        .where(
            LoginSession.token_hash == bindparam("token_hash"),
            User.disabled_at.is_(None),
            *_is_active,
        )
    )

    async def start(self, user_id: UUID, client: str) -> tuple[LoginSession, str]:
        """Add a session, and return it with its token."""
        newest = (
            select(LoginSession.id)
            .where(LoginSession.user_id == user_id)
            .order_by(LoginSession.last_used_at.desc())
        )
        await _delete(
            self.session, LoginSession, LoginSession.id.in_(newest.offset(MAX_SESSIONS - 1))
        )
        token = tokens.create(tokens.SESSION)
        row = LoginSession(user_id=user_id, token_hash=tokens.hash_of(token), client=client)
        await self.add(row)
        idle = LoginSession.last_used_at < func.now() - SESSION_IDLE
        await _prune(self.session, LoginSession, idle)
        return row, token

    async def find_active(self, token: str) -> ActiveSession | None:
        """Return the session if it has not expired and its user is not disabled."""
        result = await self.session.execute(self._by_token, {"token_hash": tokens.hash_of(token)})
        found = result.one_or_none()
        return ActiveSession(*found) if found else None

    async def note_use(self, key: UUID) -> None:
        """Write `last_used_at`, unless another transaction changes or ends the session."""
        free = select(LoginSession.id).where(LoginSession.id == key)
        await self.session.execute(
            update(LoginSession)
            .where(LoginSession.id.in_(free.with_for_update(skip_locked=True)))
            .values(last_used_at=func.now()),
            execution_options={"synchronize_session": False},
        )

    async def list_active(self, user_id: UUID) -> Sequence[LoginSession]:
        """Return the sessions of a user, the one that was used last first."""
        found = (
            select(LoginSession)
            .where(LoginSession.user_id == user_id, *self._is_active)
            .order_by(LoginSession.last_used_at.desc(), LoginSession.id.desc())
        )
        return (await self.session.scalars(found)).all()

    async def end(self, user_id: UUID, key: UUID) -> bool:
        """Return False if the user has no such session."""
        own = (LoginSession.user_id == user_id, LoginSession.id == key)
        return await _delete(self.session, LoginSession, *own) > 0

    async def end_all(self, user_id: UUID) -> int:
        return await _delete(self.session, LoginSession, LoginSession.user_id == user_id)


class OneTimeTokenRepository(Repository[OneTimeToken]):
    model = OneTimeToken

    async def issue(
        self,
        user_id: UUID,
        purpose: TokenPurpose,
        lifetime: timedelta,
        new_email: str | None = None,
    ) -> str:
        """Return a new token. It replaces earlier ones of the user for this purpose."""
        await self.revoke(user_id, purpose)
        token = tokens.create(tokens.ONE_TIME)
        row = OneTimeToken(
            user_id=user_id,
            purpose=purpose,
            token_hash=tokens.hash_of(token),
            new_email=new_email,
            expires_at=func.now() + lifetime,
        )
        await self.add(row)
        await _prune(self.session, OneTimeToken, OneTimeToken.expires_at < func.now())
        return token

    async def find_user(self, token: str, purpose: TokenPurpose) -> User | None:
        """Return the user of a token that can be redeemed."""
        found = (
            select(User)
            .join(OneTimeToken, OneTimeToken.user_id == User.id)
            .where(*self._redeemable(token, purpose))
        )
        return await self.session.scalar(found)

    async def requested_email(self, user_id: UUID) -> str | None:
        """Return the address that the user wants to have."""
        found = select(OneTimeToken.new_email).where(
            OneTimeToken.user_id == user_id,
            OneTimeToken.purpose == TokenPurpose.CHANGE_EMAIL,
            OneTimeToken.used_at.is_(None),
            OneTimeToken.expires_at > func.now(),
        )
        return await self.session.scalar(found)

    async def redeem(self, token: str, purpose: TokenPurpose) -> OneTimeToken | None:
        """Mark the token as used, and return it; None if it is unknown, used or expired.

        Of transactions that redeem it at the same time, one succeeds.
        """
        used = (
            update(OneTimeToken)
            .where(*self._redeemable(token, purpose))
            .values(used_at=func.now())
            .returning(OneTimeToken)
        )
        return await self.session.scalar(used)

    @staticmethod
    def _redeemable(token: str, purpose: TokenPurpose) -> tuple[ColumnElement[bool], ...]:
        return (
            OneTimeToken.token_hash == tokens.hash_of(token),
            OneTimeToken.purpose == purpose,
            OneTimeToken.used_at.is_(None),
            OneTimeToken.expires_at > func.now(),
        )

    async def revoke(self, user_id: UUID, *purposes: TokenPurpose) -> None:
        """Delete the user's unused tokens: of these purposes, or of all."""
        conditions = [OneTimeToken.user_id == user_id, OneTimeToken.used_at.is_(None)]
        if purposes:
            conditions.append(OneTimeToken.purpose.in_(purposes))
        await _delete(self.session, OneTimeToken, *conditions)


@dataclass(frozen=True)
class Throttle:
    """After `free` attempts, each one doubles the delay of the next, from `first` up to `longest`.

    Attempts are forgotten `window` after the first one.
    """

    free: int
    longest: timedelta
    window: timedelta
    first: timedelta = FIRST_DELAY


class LoginThrottleRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def exists(self, key: bytes) -> bool:
        found = select(LoginThrottle.id).where(
            LoginThrottle.id == key, LoginThrottle.expires_at > func.now()
        )
        return await self.session.scalar(found) is not None

    async def count(self, key: bytes, throttle: Throttle) -> float | None:
        """Count an attempt. If it comes too early, do not count it and return the seconds to wait.

        Attempts count before their outcome is known. Otherwise, many at the same time would all
        be free.
        """
        # Not now(), the start of the transaction, which may have waited for another one.
        time = func.clock_timestamp()
        has_expired = LoginThrottle.expires_at <= func.now()
        number = case((has_expired, 1), else_=LoginThrottle.attempts + 1)
        delay = throttle.first * func.power(2, func.least(number - throttle.free - 1, 30))
        values = {
            "attempts": number,
            "blocked_until": time
            + case(
                (number > throttle.free, func.least(delay, throttle.longest)), else_=timedelta()
            ),
            "expires_at": case(
                (has_expired, func.now() + throttle.window), else_=LoginThrottle.expires_at
            ),
        }
        new = insert(LoginThrottle).values(
            id=key, attempts=1, expires_at=func.now() + throttle.window
        )
        counted = new.on_conflict_do_update(
            index_elements=[LoginThrottle.id],
            set_=values,
            where=has_expired | (LoginThrottle.blocked_until <= time),
        ).returning(LoginThrottle.attempts)
        if await self.session.scalar(counted) is not None:
            return None
        left = func.extract("epoch", LoginThrottle.blocked_until - time)
        seconds = await self.session.scalar(select(left).where(LoginThrottle.id == key))
        return max(1.0, float(seconds or 0))

    async def take_back(self, key: bytes) -> None:
        """Do not count an attempt that succeeded."""
        await self.session.execute(
            update(LoginThrottle)
            .where(LoginThrottle.id == key, LoginThrottle.attempts > 0)
            .values(attempts=LoginThrottle.attempts - 1),
            execution_options={"synchronize_session": False},
        )

    async def reset(self, key: bytes, window: timedelta) -> None:
        """Forget all attempts, and remember the key for this time."""
        values = {
            "attempts": 0,
            "blocked_until": func.now(),
            "expires_at": func.now() + window,
        }
        new = insert(LoginThrottle).values(id=key, **values)
        await self.session.execute(
            new.on_conflict_do_update(index_elements=[LoginThrottle.id], set_=values)
        )

    async def prune(self) -> None:
        await _prune(self.session, LoginThrottle, LoginThrottle.expires_at < func.now())

    async def forget(self, key: bytes) -> None:
        await _delete(self.session, LoginThrottle, LoginThrottle.id == key)
