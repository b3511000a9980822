"""The tables of accounts."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.user import LoginSession, LoginThrottle, OneTimeToken, User
from src.db.session import Database
from src.domain.principal import Role
from src.domain.user import LastAdminError, TokenPurpose
from src.repositories.user import (
    SESSION_IDLE,
    SESSION_LIFETIME,
    USE_PRECISION,
    LoginSessionRepository,
    LoginThrottleRepository,
    OneTimeTokenRepository,
    Throttle,
    UserRepository,
)

THROTTLE = Throttle(free=2, longest=timedelta(seconds=20), window=timedelta(hours=1))
KEY = b"sample"


async def _add(db: AsyncSession, email: str = "ann@example.com", role: Role = Role.MEMBER) -> User:
    user = await UserRepository(db).get_or_add(email)
    user.role, user.verified_at = role, func.now()
    await db.flush()
    return user


async def test_an_address_has_one_account_in_any_case(db: AsyncSession) -> None:
    first = await _add(db, "Ann@Example.com")
    again = await UserRepository(db).get_or_add("ANN@EXAMPLE.COM")
    found = await UserRepository(db).get_by_email("ann@example.com")

    assert first is again is found
    assert first.email == "Ann@Example.com"


@pytest.mark.parametrize(
    ("column", "age", "is_active"),
    [
        ("last_used_at", SESSION_IDLE - timedelta(minutes=1), True),
        ("last_used_at", SESSION_IDLE + timedelta(seconds=1), False),
        ("created_at", SESSION_LIFETIME - timedelta(minutes=1), True),
        ("created_at", SESSION_LIFETIME + timedelta(seconds=1), False),
    ],
)
async def test_sessions_expire(
    db: AsyncSession, column: str, age: timedelta, *, is_active: bool
) -> None:
    sessions = LoginSessionRepository(db)
    _, token = await sessions.start((await _add(db)).id, "")
    await db.execute(update(LoginSession).values({column: func.now() - age}))

    assert (await sessions.find_active(token) is not None) is is_active


async def test_the_last_use_is_due_after_a_minute(db: AsyncSession) -> None:
    sessions = LoginSessionRepository(db)
    session, token = await sessions.start((await _add(db)).id, "")
    found = await sessions.find_active(token)
    assert found is not None
    assert not found.is_use_due

    await db.execute(update(LoginSession).values(last_used_at=func.now() - 2 * USE_PRECISION))
    found = await sessions.find_active(token)
    assert found is not None
    assert found.is_use_due
    await sessions.note_use(session.id)
    found = await sessions.find_active(token)
    assert found is not None
    assert not found.is_use_due


async def test_a_user_has_a_limited_number_of_sessions(
    db: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.repositories.user.MAX_SESSIONS", 2)
    sessions = LoginSessionRepository(db)
    user = await _add(db)
    other = await _add(db, "bob@example.com")
    await sessions.start(other.id, "")
    first, _ = await sessions.start(user.id, "")
    await db.execute(
        update(LoginSession)
        .where(LoginSession.id == first.id)
        .values(last_used_at=func.now() - timedelta(hours=1))
    )
    second, _ = await sessions.start(user.id, "")
    third, _ = await sessions.start(user.id, "")

    assert {each.id for each in await sessions.list_active(user.id)} == {second.id, third.id}
    assert len(await sessions.list_active(other.id)) == 1


async def test_expired_rows_are_deleted_when_others_are_added(db: AsyncSession) -> None:
    user = await _add(db)
    abandoned = await UserRepository(db).get_or_add("bob@example.com")
    returned = await UserRepository(db).get_or_add("dan@example.com")
    tokens, throttles = OneTimeTokenRepository(db), LoginThrottleRepository(db)
    await LoginSessionRepository(db).start(user.id, "")
    await tokens.issue(user.id, TokenPurpose.VERIFY_EMAIL, timedelta(seconds=-1))
    await tokens.issue(returned.id, TokenPurpose.VERIFY_EMAIL, timedelta(hours=1))
    await throttles.count(KEY, Throttle(1, timedelta(), timedelta(seconds=-1)))
    long_ago = func.now() - timedelta(days=100)
    await db.execute(update(LoginSession).values(last_used_at=long_ago))
    await db.execute(update(User).values(created_at=long_ago))

    other = await UserRepository(db).get_or_add("cid@example.com")
    session, _ = await LoginSessionRepository(db).start(other.id, "")
    await tokens.issue(other.id, TokenPurpose.VERIFY_EMAIL, timedelta(hours=1))
    await throttles.count(b"other", THROTTLE)
    await throttles.prune()

    assert set(await db.scalars(select(User.id))) == {user.id, returned.id, other.id}
    assert abandoned.id not in set(await db.scalars(select(User.id)))
    assert list(await db.scalars(select(LoginSession.id))) == [session.id]
    assert set(await db.scalars(select(OneTimeToken.user_id))) == {returned.id, other.id}
    assert list(await db.scalars(select(LoginThrottle.id))) == [b"other"]


async def test_one_of_several_transactions_redeems_a_token(committing_database: Database) -> None:
    async with committing_database.transaction() as db:
        user = await _add(db)
        token = await OneTimeTokenRepository(db).issue(
            user.id, TokenPurpose.RESET_PASSWORD, timedelta(hours=1)
        )

    async def redeem(purpose: TokenPurpose = TokenPurpose.RESET_PASSWORD) -> bool:
        async with committing_database.transaction() as db:
            return await OneTimeTokenRepository(db).redeem(token, purpose) is not None

    assert not await redeem(TokenPurpose.VERIFY_EMAIL)
    assert sum(await asyncio.gather(*(redeem() for _ in range(8)))) == 1


async def test_a_token_is_not_redeemed_if_it_has_expired_or_was_replaced(db: AsyncSession) -> None:
    user = await _add(db)
    tokens = OneTimeTokenRepository(db)
    purpose = TokenPurpose.RESET_PASSWORD
    expired = await tokens.issue(user.id, purpose, timedelta(seconds=-1))
    assert await tokens.redeem(expired, purpose) is None

    replaced = await tokens.issue(user.id, purpose, timedelta(hours=1))
    newest = await tokens.issue(user.id, purpose, timedelta(hours=1))
    assert await tokens.redeem(replaced, purpose) is None
    assert await tokens.redeem(newest, purpose) is not None


async def test_attempts_become_slower(committing_database: Database) -> None:
    async def count(wait: float = 0) -> float | None:
        async with committing_database.transaction() as db:
            if wait:
                past = LoginThrottle.blocked_until - timedelta(seconds=wait)
                await db.execute(update(LoginThrottle).values(blocked_until=past))
            return await LoginThrottleRepository(db).count(KEY, THROTTLE)

    waits = []
    for _ in range(7):
        assert await count(wait=20) is None
        blocked = await count()
        waits.append(blocked and round(blocked))
    # The second attempt of the first round is free too.
    assert waits == [None, 5, 10, 20, 20, 20, 20]


async def test_attempts_at_the_same_time_are_not_all_free(committing_database: Database) -> None:
    async def count() -> float | None:
        async with committing_database.transaction() as db:
            return await LoginThrottleRepository(db).count(KEY, THROTTLE)

    waits = await asyncio.gather(*(count() for _ in range(10)))
    assert waits.count(None) == THROTTLE.free + 1


async def test_attempts_are_forgotten(db: AsyncSession) -> None:
    throttles = LoginThrottleRepository(db)
    while await throttles.count(KEY, THROTTLE) is None:
        pass
    await db.execute(update(LoginThrottle).values(expires_at=func.now()))
    assert await throttles.count(KEY, THROTTLE) is None
    await throttles.reset(KEY, timedelta(days=1))
    assert await throttles.exists(KEY)
    assert await db.scalar(select(LoginThrottle.attempts)) == 0


async def test_two_administrators_cannot_remove_each_other(committing_database: Database) -> None:
    async with committing_database.transaction() as db:
        users = [await _add(db, f"{name}@example.com", Role.ADMIN) for name in ("ann", "bob")]

    async def demote(user: User) -> None:
        async with committing_database.transaction() as db:
            found = await UserRepository(db).get_without_last_admin(user.id)
            assert found is not None
            found.role = Role.MEMBER

    results = await asyncio.gather(*map(demote, users), return_exceptions=True)
    assert {type(each) for each in results} == {LastAdminError, type(None)}
