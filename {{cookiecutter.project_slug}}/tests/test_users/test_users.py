"""Accounts: sign-up, one's own account, and their administration."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from httpx import AsyncClient, Response
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from src.api.sessions import COOKIE
from src.core.config import Settings
from src.db import Database
from src.db.models.user import LoginSession, OneTimeToken, User
from src.domain.principal import Principal, PrincipalKind, Role, Scope
from src.domain.user import RoleTooPowerfulError, TokenPurpose
from src.repositories.user import OneTimeTokenRepository
from src.schemas.user import UserUpdate
from src.services import login_throttle
from src.services.user import UserService
from src.services.user_mail import LINKS
from tests.fixtures.client import application, connect
from tests.fixtures.environment import API
from tests.fixtures.mail import Mailbox
from tests.fixtures.statements import until_waiting
from tests.fixtures.users import EMAIL, PASSWORD, LogIn, add_user, start_session

USERS = f"{API}/users/"
ME = f"{USERS}me"
NEW_PASSWORD = "seven green bicycles"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def change_password(client: AsyncClient, **options: Any) -> Response:
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    return await client.post(f"{ME}/password", json=body, **options)


async def test_sign_up_does_not_tell_whether_an_account_exists(
    client: AsyncClient, database: Database, db: AsyncSession, mailbox: Mailbox
) -> None:
    await add_user(database)
    responses = [
        await client.post(USERS, json={"email": email})
        for email in (EMAIL, "Bob@example.com", "bob@EXAMPLE.com")
    ]
    assert {each.status_code for each in responses} == {202}
    assert len({each.text for each in responses}) == 1

    await mailbox.mails()
    bob = await db.scalar(select(User).where(User.email == "Bob@example.com"))
    assert bob is not None
    assert (bob.password_hash, bob.verified_at, bob.role) == (None, None, Role.MEMBER)
    issued = await db.execute(select(OneTimeToken.user_id, OneTimeToken.purpose))
    assert {purpose for user_id, purpose in issued if user_id == bob.id} == {
        TokenPurpose.VERIFY_EMAIL
    }


async def test_sign_up_sends_few_mails_to_one_address(
    client: AsyncClient, mailbox: Mailbox
) -> None:
    statuses = set()
    for _ in range(login_throttle.MAIL.free + 3):
        statuses.add((await client.post(USERS, json={"email": EMAIL})).status_code)
    assert statuses == {202}
    assert len(await mailbox.mails()) == login_throttle.MAIL.free + 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": ""},
        {"email": "ann"},
        {"email": "ann@"},
        {"email": "@example.com"},
        {"email": "ann@example.com\n"},
        {"email": "ann@example.com, bob@example.com"},
        {"email": "Ann <ann@example.com>"},
        {"email": "ann@ex\u0430mple.com"},  # a Cyrillic letter
        {"email": "\u0131nfo@example.com"},  # a dotless i
        {"email": "\uff41nn@example.com"},  # a full-width letter, which NFKC makes an `a`
        {"email": "ann\u0000@example.com"},
        {"email": "a" * 65 + "@example.com"},
        {"email": "a@" + "b." * 130 + "com"},
        {"email": EMAIL, "role": "admin"},
        {"email": EMAIL, "password": PASSWORD},
        {"email": EMAIL, "verified_at": "2026-01-01T00:00:00Z"},
    ],
)
async def test_invalid_sign_ups_are_refused(client: AsyncClient, body: dict[str, str]) -> None:
    assert (await client.post(USERS, json=body)).status_code == 422


async def test_sign_up_can_be_closed(database: Database, db: AsyncSession) -> None:
    settings = Settings(_env_file=None, ENV="test", SIGN_UP_ENABLED=False)
    async with connect(application(settings), database, settings) as client:
        response = await client.post(USERS, json={"email": EMAIL})
    assert response.status_code == 403
    assert response.json()["type"] == "urn:problem-type:sign-up-closed"
    assert await db.scalar(select(func.count()).select_from(User)) == 0


async def test_a_response_has_no_secret(logged_in: AsyncClient) -> None:
    assert (await logged_in.get(ME)).json().keys() == {
        "id",
        "email",
        "role",
        "verified_at",
        "disabled_at",
        "created_at",
    }


async def test_other_principals_have_no_account(client: AsyncClient) -> None:
    """Without credentials, tests have all scopes."""
    for method, path in (("GET", ME), ("DELETE", f"{API}/sessions/"), ("GET", f"{API}/sessions/")):
        response = await client.request(method, path)
        assert response.status_code == 403
        assert response.json()["type"] == "urn:problem-type:not-a-user"


async def test_a_new_password_ends_all_sessions(
    client: AsyncClient, database: Database, db: AsyncSession
) -> None:
    user = await add_user(database)
    token, other = [await start_session(database, user) for _ in range(2)]
    async with database.transaction() as session:
        await OneTimeTokenRepository(session).issue(
            user.id, TokenPurpose.RESET_PASSWORD, LINKS[TokenPurpose.RESET_PASSWORD].lifetime
        )
    response = await change_password(client, headers=bearer(token))

    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    new = response.json()["token"]
    statuses = [
        (await client.get(ME, headers=bearer(each))).status_code for each in (token, other, new)
    ]
    assert statuses == [401, 401, 200]
    assert await db.scalar(select(func.count()).select_from(OneTimeToken)) == 0
    log_in = f"{API}/sessions/"
    old_body, new_body = ({"email": EMAIL, "password": each} for each in (PASSWORD, NEW_PASSWORD))
    assert (await client.post(log_in, json=old_body)).status_code == 401
    assert (await client.post(log_in, json=new_body)).status_code == 201


async def test_a_new_password_renews_the_cookie(client: AsyncClient, database: Database) -> None:
    token = await start_session(database, await add_user(database))
    headers = {"Cookie": f"{COOKIE}={token}", "Sec-Fetch-Site": "same-origin"}
    response = await change_password(client, headers=headers)
    assert response.json()["token"] is None
    assert response.headers["Set-Cookie"].startswith(f"{COOKIE}=session_")
    assert token not in response.headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"current_password": "another password"}, 403, "wrong-password"),
        ({"new_password": "too short"}, 422, "unacceptable-password"),
        ({"new_password": "Ann@example.com 2026"}, 422, "unacceptable-password"),
    ],
)
async def test_invalid_changes_of_the_password(
    logged_in: AsyncClient, body: dict[str, str], status: int, kind: str
) -> None:
    valid = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    response = await logged_in.post(f"{ME}/password", json=valid | body)
    assert response.status_code == status
    assert response.json()["type"] == f"urn:problem-type:{kind}"
    assert (await logged_in.get(ME)).status_code == 200


async def test_a_thief_of_a_session_cannot_guess_the_password(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    token = await start_session(committing_database, await add_user(committing_database))
    body = {"password": "another password"}
    statuses = [
        (
            await committing_client.post(f"{ME}/deletion", json=body, headers=bearer(token))
        ).status_code
        for _ in range(login_throttle.ACCOUNT.free + 2)
    ]
    assert statuses == [403] * (login_throttle.ACCOUNT.free + 1) + [429]


async def test_one_of_two_changes_at_the_same_time_succeeds(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    user = await add_user(committing_database)
    tokens = [await start_session(committing_database, user) for _ in range(2)]
    responses = await asyncio.gather(
        *(change_password(committing_client, headers=bearer(each)) for each in tokens)
    )
    # The other one finds another password, or its session has ended.
    winner, loser = sorted(responses, key=lambda each: each.status_code)
    assert winner.status_code == 200
    assert loser.status_code in {401, 403}
    async with committing_database.reads() as session:
        assert await session.scalar(select(func.count()).select_from(LoginSession)) == 1


async def test_a_log_in_with_the_old_password_does_not_survive_its_change(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    """The password is verified before the change commits, and the session starts after it."""
    user = await add_user(committing_database)
    async with committing_database.transaction() as session:
        locked = await session.get_one(User, user.id, with_for_update=True)
        body = {"email": EMAIL, "password": PASSWORD}
        log_in = asyncio.create_task(committing_client.post(f"{API}/sessions/", json=body))
        await until_waiting(committing_database, 1)
        locked.password_hash = "changed"
    assert (await log_in).status_code == 401


async def test_log_ins_at_the_same_time_have_separate_sessions(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    await add_user(committing_database)
    body = {"email": EMAIL, "password": PASSWORD}
    responses = await asyncio.gather(
        *(committing_client.post(f"{API}/sessions/", json=body) for _ in range(4))
    )
    assert {each.status_code for each in responses} == {201}
    assert len({each.json()["token"] for each in responses}) == 4


async def test_a_user_deletes_the_own_account(
    client: AsyncClient, database: Database, db: AsyncSession
) -> None:
    token = await start_session(database, await add_user(database))
    await add_user(database, "bob@example.com")
    response = await client.post(
        f"{ME}/deletion", json={"password": PASSWORD}, headers=bearer(token)
    )
    assert response.status_code == 204
    assert (await client.get(ME, headers=bearer(token))).status_code == 401
    assert list(await db.scalars(select(User.email))) == ["bob@example.com"]


async def test_a_member_cannot_manage_users(logged_in: AsyncClient, database: Database) -> None:
    other = await add_user(database, "bob@example.com")
    me = (await logged_in.get(ME)).json()["id"]
    for path in (f"{USERS}{me}", f"{USERS}{other.id}"):
        assert (await logged_in.get(path)).status_code == 403
        assert (await logged_in.patch(path, json={"role": "admin"})).status_code == 403
    assert (await logged_in.get(USERS)).status_code == 403
    assert (await logged_in.patch(ME, json={"role": "admin"})).status_code in {403, 405, 422}
    assert (await logged_in.get(ME)).json()["role"] == "member"


async def test_an_admin_manages_users(
    log_in: LogIn, client: AsyncClient, database: Database
) -> None:
    admin = await log_in(Role.ADMIN, "admin@example.com")
    user = await add_user(database)
    token = await start_session(database, user)
    path = f"{USERS}{user.id}"

    page = (await admin.get(USERS, params={"limit": 1})).json()
    assert [each["email"] for each in page["users"]] == [EMAIL]
    rest = (await admin.get(USERS, params={"cursor": page["next_cursor"]})).json()
    assert [each["email"] for each in rest["users"]] == ["admin@example.com"]
    found = (await admin.get(USERS, params={"email": EMAIL.upper()})).json()
    assert [each["id"] for each in found["users"]] == [str(user.id)]

    assert (await admin.patch(path, json={"role": "admin"})).json()["role"] == "admin"
    assert (await client.get(USERS, headers=bearer(token))).status_code == 200
    disabled = await admin.patch(path, json={"disabled": True})
    assert disabled.json()["disabled_at"] is not None
    assert (await client.get(ME, headers=bearer(token))).status_code == 401
    enabled = await admin.patch(path, json={"disabled": False})
    assert enabled.json()["disabled_at"] is None
    assert (await client.get(ME, headers=bearer(token))).status_code == 401  # not revived
    assert (await admin.get(path)).json()["role"] == "admin"


@pytest.mark.parametrize(
    "body",
    [
        {"role": "owner"},
        {"role": None},
        {"disabled": None},
        {"email": "other@example.com"},
        {"password_hash": "x"},
        {"scopes": ["users:write"]},
    ],
)
async def test_invalid_changes_of_users(
    log_in: LogIn, database: Database, body: dict[str, Any]
) -> None:
    admin = await log_in(Role.ADMIN)
    user = await add_user(database, "bob@example.com")
    assert (await admin.patch(f"{USERS}{user.id}", json=body)).status_code == 422


async def test_the_last_admin_remains(log_in: LogIn, database: Database) -> None:
    admin = await log_in(Role.ADMIN)
    await add_user(database, "disabled@example.com", role=Role.ADMIN, disabled=True)
    me = f"{USERS}{(await admin.get(ME)).json()['id']}"
    for change in ({"role": "member"}, {"disabled": True}):
        response = await admin.patch(me, json=change)
        assert response.status_code == 409
        assert response.json()["type"] == "urn:problem-type:last-admin"
    assert (await admin.post(f"{ME}/deletion", json={"password": PASSWORD})).status_code == 409
    await add_user(database, "bob@example.com", role=Role.ADMIN)
    assert (await admin.patch(me, json={"role": "member"})).status_code == 200


async def test_no_one_assigns_scopes_that_they_do_not_have(
    database: Database, db: AsyncSession
) -> None:
    user = await add_user(database)
    admin = await add_user(database, "admin@example.com", role=Role.ADMIN)
    limited = Principal(PrincipalKind.API_KEY, "limited", frozenset([Scope.USERS_WRITE]))
    with pytest.raises(RoleTooPowerfulError):
        await UserService.update_user(db, user.id, UserUpdate(role=Role.ADMIN), limited.scopes)
    await add_user(database, "other@example.com", role=Role.ADMIN)
    with pytest.raises(RoleTooPowerfulError):
        await UserService.update_user(db, admin.id, UserUpdate(disabled=True), limited.scopes)


async def test_an_unknown_user_is_not_found(log_in: LogIn) -> None:
    admin = await log_in(Role.ADMIN)
    path = f"{USERS}{UUID(int=0)}"
    assert (await admin.get(path)).status_code == 404
    assert (await admin.patch(path, json={"role": "member"})).status_code in {404, 409}
