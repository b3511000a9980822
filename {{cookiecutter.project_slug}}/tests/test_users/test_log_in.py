"""Log-in, log-out, and the sessions of a user."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from httpx import AsyncClient, Response
from sqlalchemy import URL, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from src.api import auth
from src.api.sessions import COOKIE
from src.auth import tokens
from src.auth.passwords import ITERATIONS, MEMORY_KIB, PARALLELISM
from src.core.config import Settings
from src.db import Database, open_database
from src.db.models.user import LoginSession, LoginThrottle, User
from src.domain.errors import TooManyRequestsError
from src.domain.principal import Role
from src.repositories.user import SESSION_LIFETIME, USE_PRECISION, LoginSessionRepository
from src.services import login_throttle
from tests.fixtures.client import application, connect
from tests.fixtures.environment import API
from tests.fixtures.statements import recorded
from tests.fixtures.users import EMAIL, PASSWORD, LogIn, add_user, start_session

SESSIONS = f"{API}/sessions/"
ME = f"{API}/users/me"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}


async def log_in(client: AsyncClient, **changes: Any) -> Response:
    body = {"email": EMAIL, "password": PASSWORD, **changes}
    return await client.post(SESSIONS, json=body, headers=SAME_ORIGIN)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_token_identifies_the_user(client: AsyncClient, database: Database) -> None:
    user = await add_user(database)
    response = await log_in(client, email="ANN@example.com")

    assert response.status_code == 201
    assert response.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in response.headers
    token = response.json()["token"]
    assert token.startswith("session_")
    me = await client.get(ME, headers=bearer(token))
    assert me.json()["id"] == response.json()["user"]["id"] == str(user.id)


async def test_the_token_is_stored_as_a_hash(
    client: AsyncClient, database: Database, db: AsyncSession
) -> None:
    await add_user(database)
    token = (await log_in(client)).json()["token"]
    stored = await db.scalar(select(LoginSession.token_hash))
    assert stored == tokens.hash_of(token)
    assert token.encode() not in stored


async def test_a_cookie_identifies_the_user(client: AsyncClient, database: Database) -> None:
    await add_user(database)
    response = await log_in(client, cookie=True)

    assert response.json()["token"] is None
    name, _, rest = response.headers["Set-Cookie"].partition("=")
    token, *attributes = rest.split("; ")
    lifetime = int(SESSION_LIFETIME.total_seconds())
    assert name == COOKIE == "__Host-session"
    assert {each.lower() for each in attributes} == {
        "secure",
        "httponly",
        "samesite=lax",
        "path=/",
        f"max-age={lifetime}",
    }
    me = await client.get(ME, headers={"Cookie": f"{COOKIE}={token}"})
    assert me.json()["email"] == EMAIL


async def test_each_log_in_has_a_new_token(client: AsyncClient, database: Database) -> None:
    user = await add_user(database)
    fixed = await start_session(database, user)
    client.headers["Cookie"] = f"{COOKIE}={fixed}"
    response = await log_in(client, cookie=True)
    assert response.status_code == 201
    assert fixed not in response.headers["Set-Cookie"]


@pytest.mark.parametrize("kind", ["unknown", "wrong", "unverified", "disabled", "no password"])
async def test_all_refusals_are_the_same(
    client: AsyncClient, database: Database, kind: str
) -> None:
    await add_user(database, "other@example.com")
    body = {"email": EMAIL, "password": PASSWORD}
    if kind == "wrong":
        body = {"email": "other@example.com", "password": "another password"}
    elif kind != "unknown":
        user = await add_user(database, verified=kind != "unverified", disabled=kind == "disabled")
        if kind == "no password":
            async with database.transaction() as session:
                (await session.get_one(User, user.id)).password_hash = None
    response = await client.post(SESSIONS, json=body)

    assert response.status_code == 401
    problem = response.json()
    del problem["request_id"]
    assert problem == {
        "type": "urn:problem-type:login-failed",
        "title": "Log-in failed",
        "status": 401,
        "detail": "The e-mail address or the password is wrong, or the account cannot log in.",
        "instance": SESSIONS,
    }
    assert "Set-Cookie" not in response.headers


async def test_every_refusal_verifies_one_hash(
    client: AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time must not tell which accounts exist. A real comparison of times would be flaky."""
    await add_user(database)
    verified: list[str] = []
    verify = PasswordHasher.verify

    def record(self: PasswordHasher, stored: str, password: str) -> bool:
        verified.append(stored)
        return verify(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", record)
    for email in (EMAIL, "unknown@example.com"):
        await log_in(client, email=email, password="another password")
    costs = [each.split("$")[1:4] for each in verified]
    assert len(costs) == 2
    assert costs[0] == costs[1]
    lengths = [[len(part) for part in each.split("$")] for each in verified]
    assert lengths[0] == lengths[1]


async def test_log_out_ends_this_session_only(client: AsyncClient, database: Database) -> None:
    user = await add_user(database)
    token, other = [await start_session(database, user) for _ in range(2)]
    response = await client.delete(f"{SESSIONS}current", headers=bearer(token))

    assert response.status_code == 204
    assert (await client.get(ME, headers=bearer(token))).status_code == 401
    assert (await client.get(ME, headers=bearer(other))).status_code == 200


async def test_log_out_deletes_the_cookie(client: AsyncClient, database: Database) -> None:
    token = await start_session(database, await add_user(database))
    headers = {"Cookie": f"{COOKIE}={token}", **SAME_ORIGIN}
    response = await client.delete(f"{SESSIONS}current", headers=headers)
    assert response.status_code == 204
    cookie = response.headers["Set-Cookie"].lower()
    assert cookie.startswith(COOKIE.lower())
    assert "max-age=0" in cookie
    assert "secure" in cookie


async def test_log_out_everywhere(client: AsyncClient, database: Database) -> None:
    user = await add_user(database)
    others = await start_session(database, await add_user(database, "bob@example.com"))
    token, other = [await start_session(database, user) for _ in range(2)]
    assert (await client.delete(SESSIONS, headers=bearer(token))).status_code == 204
    assert (await client.get(ME, headers=bearer(token))).status_code == 401
    assert (await client.get(ME, headers=bearer(other))).status_code == 401
    assert (await client.get(ME, headers=bearer(others))).status_code == 200


async def test_a_user_lists_and_ends_own_sessions(log_in: LogIn, client: AsyncClient) -> None:
    ann = await log_in()
    bob = await log_in(email="bob@example.com")
    ann.headers["User-Agent"] = "phone"
    other = await client.post(
        SESSIONS, json={"email": EMAIL, "password": PASSWORD}, headers={b"User-Agent": b"phone\x85"}
    )
    listed = (await ann.get(SESSIONS)).json()["sessions"]
    assert {(each["client"], each["current"]) for each in listed} == {
        ("phone", False),
        ("tests", True),
    }
    path = f"{SESSIONS}{other.json()['id']}"
    assert (await bob.delete(path)).status_code == 404
    assert (await ann.delete(path)).status_code == 204
    assert (await ann.delete(path)).status_code == 404
    assert len((await ann.get(SESSIONS)).json()["sessions"]) == 1


async def test_a_session_costs_one_statement(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    token = await start_session(committing_database, await add_user(committing_database))
    await committing_client.get(ME, headers=bearer(token))
    with recorded(committing_database) as sent:
        await committing_client.get(ME, headers=bearer(token))
    assert sent == ["SELECT", "SELECT"]  # the session, and the user that the endpoint returns


async def test_the_last_use_is_written_once_a_minute(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    token = await start_session(committing_database, await add_user(committing_database))
    async with committing_database.transaction() as session:
        long_ago = func.now() - 2 * USE_PRECISION
        await session.execute(update(LoginSession).values(last_used_at=long_ago))
    written = []
    for _ in range(3):
        with recorded(committing_database) as sent:
            await committing_client.get(ME, headers=bearer(token))
        written.append("UPDATE" in sent)
    assert written == [True, False, False]


async def test_a_session_that_ends_during_a_request(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    """The request does not wait for the other transaction, and does not bring the session back."""
    token = await start_session(committing_database, await add_user(committing_database))
    async with committing_database.transaction() as session:
        long_ago = func.now() - 2 * USE_PRECISION
        await session.execute(update(LoginSession).values(last_used_at=long_ago))
    async with committing_database.transaction() as session:
        await session.execute(delete(LoginSession))
        during = await committing_client.get(ME, headers=bearer(token))
    assert during.status_code == 200
    assert (await committing_client.get(ME, headers=bearer(token))).status_code == 401


async def test_all_processes_see_the_end_of_a_session(
    app: FastAPI, committing_database: Database, committing_url: URL
) -> None:
    token = await start_session(committing_database, await add_user(committing_database))
    async with (
        open_database(committing_url, pool_size=1) as other_database,
        connect(app, committing_database) as one,
        connect(app, other_database) as other,
    ):
        assert (await other.get(ME, headers=bearer(token))).status_code == 200
        ended = await one.delete(f"{SESSIONS}current", headers=bearer(token))
        assert ended.status_code == 204
        assert (await other.get(ME, headers=bearer(token))).status_code == 401


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
async def test_credentials_of_other_kinds_are_refused(
    client: AsyncClient, database: Database, header: str
) -> None:
    token = await start_session(database, await add_user(database))
    value = token if header == "X-API-Key" else "Bearer a-key-of-the-setting-API_KEYS"
    assert (await client.get(ME, headers={header: value})).status_code == 401


@pytest.mark.parametrize(
    "token",
    ["", "session_", "session_" + "a" * 43, "session_" + "a" * 100_000, "session_ä" + "a" * 42],
)
async def test_a_token_that_does_not_exist_is_refused(client: AsyncClient, token: str) -> None:
    response = await client.get(ME, headers={b"Authorization": f"Bearer {token}".encode()})
    assert response.status_code == 401
    assert "Bearer" in response.headers["WWW-Authenticate"]


async def test_a_one_time_token_is_no_session(client: AsyncClient, database: Database) -> None:
    token = tokens.create(tokens.ONE_TIME)
    user = await add_user(database)
    async with database.transaction() as session:
        row = LoginSession(user_id=user.id, token_hash=tokens.hash_of(token), client="")
        session.add(row)
    assert (await client.get(ME, headers=bearer(token))).status_code == 401


async def test_a_header_beats_the_cookie(client: AsyncClient, database: Database) -> None:
    token = await start_session(database, await add_user(database))
    headers = {"Cookie": f"{COOKIE}={token}", **bearer(token + "a")}
    assert (await client.get(ME, headers=headers)).status_code == 401
    two = [("Authorization", f"Bearer {token}"), ("X-API-Key", "key")]
    assert (await client.get(ME, headers=two)).status_code == 401
    twice = [("Authorization", f"Bearer {token}")] * 2
    assert (await client.get(ME, headers=twice)).status_code == 401


async def test_a_disabled_user_has_no_session(log_in: LogIn, db: AsyncSession) -> None:
    client = await log_in()
    await db.execute(update(User).values(disabled_at=func.now()))
    await db.commit()
    assert (await client.get(ME)).status_code == 401


async def test_a_change_of_the_role_is_effective_at_once(log_in: LogIn, db: AsyncSession) -> None:
    client = await log_in(Role.ADMIN)
    assert (await client.get(f"{API}/users/")).status_code == 200
    await db.execute(update(User).values(role=Role.MEMBER))
    await db.commit()
    response = await client.get(f"{API}/users/")
    assert response.status_code == 403
    assert response.json()["type"] == "urn:problem-type:missing-scope"


async def test_a_session_that_ends_before_the_body_arrives_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Middleware has found the user before that."""
    monkeypatch.setattr(auth, "_FRESH_SECONDS", 0)
    user = await add_user(database)
    token = await start_session(database, user)
    settings = Settings(_env_file=None, ENV="test", RATE_LIMIT="100/minute")

    async def body() -> AsyncGenerator[bytes]:
        async with database.transaction() as db:
            await LoginSessionRepository(db).end_all(user.id)
        yield b"{}"

    async with connect(application(settings), database, settings, rate_limits=True) as client:
        headers = {**bearer(token), "Content-Type": "application/json"}
        response = await client.post(f"{ME}/password", content=body(), headers=headers)
    assert response.status_code == 401


async def test_a_hash_with_old_parameters_is_renewed(
    client: AsyncClient, database: Database, db: AsyncSession
) -> None:
    old = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    await add_user(database, stored=old)
    assert (await log_in(client)).status_code == 201
    stored = await db.scalar(select(User.password_hash))
    assert stored is not None
    assert f"m={MEMORY_KIB},t={ITERATIONS},p={PARALLELISM}" in stored
    assert (await log_in(client)).status_code == 201


@pytest.mark.parametrize("equal", ["\ufb01 river cactus 77", "fi river cactus 77"])
async def test_unicode_passwords_are_normalized(
    client: AsyncClient, database: Database, equal: str
) -> None:
    stored = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("fi river cactus 77")
    await add_user(database, stored=stored)
    assert (await log_in(client, password=equal)).status_code == 201


async def test_failed_attempts_delay_the_next_one(
    committing_database: Database, committing_client: AsyncClient
) -> None:
    """The refusal fails the request, but its count is committed."""
    await add_user(committing_database)
    for email in (EMAIL, "unknown@example.com"):
        statuses = []
        for _ in range(login_throttle.ACCOUNT.free + 2):
            response = await log_in(committing_client, email=email, password="another password")
            statuses.append(response.status_code)
        assert statuses == [401] * (login_throttle.ACCOUNT.free + 1) + [429]
        assert int(response.headers["Retry-After"]) >= 1
    async with committing_database.transaction() as session:
        later = func.now() + timedelta(hours=1)
        await session.execute(update(LoginThrottle).values(blocked_until=later))
    # The right password has to wait too: otherwise, guesses would continue.
    assert (await log_in(committing_client)).status_code == 429
    async with committing_database.transaction() as session:
        await session.execute(update(LoginThrottle).values(blocked_until=func.now()))
    assert (await log_in(committing_client)).status_code == 201
    assert (await log_in(committing_client, password="another password")).status_code == 401


async def test_others_cannot_lock_the_owner_out(
    committing_database: Database, committing_client: AsyncClient
) -> None:
    await add_user(committing_database)
    assert (await log_in(committing_client)).status_code == 201  # from this address
    for _ in range(login_throttle.ACCOUNT.free + 5):
        with suppress(TooManyRequestsError):
            await login_throttle.Attempt.count(committing_database, EMAIL, "203.0.113.9")
    assert (await log_in(committing_client)).status_code == 201


async def test_an_address_has_a_budget_for_all_accounts(committing_database: Database) -> None:
    async def attempt(number: int) -> None:
        await login_throttle.Attempt.count(
            committing_database, f"{number}@example.com", "203.0.113.9"
        )

    for number in range(login_throttle.ADDRESS.free + 1):
        await attempt(number)
    with pytest.raises(TooManyRequestsError):
        await attempt(1000)


async def test_passwords_are_not_in_responses_or_logs(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await log_in(client, password=PASSWORD * 100)
    assert response.status_code == 422
    assert PASSWORD not in response.text
    await log_in(client)
    assert PASSWORD not in caplog.text
