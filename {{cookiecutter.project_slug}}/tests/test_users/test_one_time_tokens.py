"""Sign-up, a forgotten password and a new e-mail address: what tokens of e-mails allow."""

import asyncio
from typing import Any

from httpx import AsyncClient, Response
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth import tokens
from src.core.config import Settings
from src.db import Database
from src.db.models.user import LoginSession, OneTimeToken, User
from src.domain.user import TokenPurpose, UserMail
from src.repositories.user import OneTimeTokenRepository
from src.services import login_throttle
from src.services.user_mail import LINKS
from tests.fixtures.environment import API
from tests.fixtures.mail import Mailbox, text_of, token_in
from tests.fixtures.users import EMAIL, PASSWORD, LogIn, add_user, start_session

USERS = f"{API}/users"
NEW_PASSWORD = "violet anchor 92 pebbles"
NEW_EMAIL = "ann.new@example.com"


async def log_in(client: AsyncClient, email: str = EMAIL, password: str = NEW_PASSWORD) -> int:
    body = {"email": email, "password": password}
    return (await client.post(f"{API}/sessions/", json=body)).status_code


async def set_password(client: AsyncClient, page: str, token: str, **others: Any) -> Response:
    body = {"token": token, "password": NEW_PASSWORD, **others}
    return await client.post(f"{USERS}/{page}", json=body)


async def request_reset(client: AsyncClient, email: str = EMAIL) -> Response:
    return await client.post(f"{USERS}/forgot-password", json={"email": email})


async def issue(
    database: Database,
    user: User,
    purpose: TokenPurpose = TokenPurpose.RESET_PASSWORD,
    new_email: str | None = None,
) -> str:
    async with database.transaction() as db:
        lifetime = LINKS[purpose].lifetime
        return await OneTimeTokenRepository(db).issue(user.id, purpose, lifetime, new_email)


def without_ids(response: Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    return {name: value for name, value in body.items() if name not in {"instance", "request_id"}}


async def test_a_new_user_confirms_the_address_and_sets_a_password(
    client: AsyncClient, mailbox: Mailbox
) -> None:
    response = await client.post(f"{USERS}/", json={"email": EMAIL})
    assert response.status_code == 202
    mail = await mailbox.last(EMAIL)
    token = token_in(mail)
    assert f"\nhttp://localhost:3000/verify-email#token={token}\n" in text_of(mail)
    assert f"\n{token}\n" in text_of(mail)
    assert f'href="http://localhost:3000/verify-email#token={token}"' in text_of(mail, "html")

    assert (await set_password(client, "verify-email", token)).status_code == 204

    assert await log_in(client) == 201
    assert (await set_password(client, "verify-email", token)).status_code == 422
    assert len(await mailbox.mails()) == 1  # nothing was changed that needs a notice


async def test_sign_up_with_a_known_address_writes_to_its_owner(
    client: AsyncClient, database: Database, mailbox: Mailbox
) -> None:
    """The response is the same. The e-mail helps an owner who forgot the account."""
    await add_user(database)
    known = await client.post(f"{USERS}/", json={"email": EMAIL})
    unknown = await client.post(f"{USERS}/", json={"email": "eve@example.com"})

    assert (known.status_code, known.content) == (unknown.status_code, unknown.content)
    first, second = await mailbox.mails()
    assert "You already have an account" in first["Subject"]
    assert "Confirm your e-mail address" in second["Subject"]
    assert (await set_password(client, "verify-email", token_in(first))).status_code == 422
    assert (await set_password(client, "reset-password", token_in(first))).status_code == 204
    assert await log_in(client) == 201


async def test_a_forgotten_password_is_replaced(
    client: AsyncClient, database: Database, mailbox: Mailbox
) -> None:
    """All sessions end, and the owner gets a notice."""
    user = await add_user(database)
    session = await start_session(database, user)
    assert (await request_reset(client, EMAIL.upper())).status_code == 202
    token = token_in(await mailbox.last(EMAIL))

    response = await set_password(client, "reset-password", token)

    assert response.status_code == 204
    assert response.headers["Cache-Control"] == "no-store"
    headers = {"Authorization": f"Bearer {session}"}
    assert (await client.get(f"{USERS}/me", headers=headers)).status_code == 401
    assert await log_in(client, password=PASSWORD) == 401
    assert await log_in(client) == 201
    notice = await mailbox.last(EMAIL)
    assert "Your password for" in notice["Subject"]
    assert "http" not in text_of(notice)


async def test_a_reset_confirms_the_address_of_an_account_without_password(
    client: AsyncClient, database: Database, mailbox: Mailbox
) -> None:
    await add_user(database, verified=False)
    await request_reset(client)

    token = token_in(await mailbox.last(EMAIL))

    assert (await set_password(client, "verify-email", token)).status_code == 204
    assert await log_in(client) == 201


async def test_a_reset_ends_a_lockout(client: AsyncClient, database: Database) -> None:
    user = await add_user(database)
    statuses = [await log_in(client, password="wrong") for _ in range(10)]
    assert statuses[-1] == 429

    await set_password(client, "reset-password", await issue(database, user))

    assert await log_in(client) == 201


async def test_unknown_and_disabled_accounts_get_the_same_response_but_no_mail(
    client: AsyncClient, database: Database, mailbox: Mailbox
) -> None:
    await add_user(database)
    await add_user(database, "bob@example.com", disabled=True)

    responses = [
        await request_reset(client, email)
        for email in (EMAIL, "bob@example.com", "eve@example.com")
    ]

    assert {(each.status_code, each.content) for each in responses} == {(202, responses[0].content)}
    assert [mail["To"] for mail in await mailbox.mails()] == [EMAIL]


async def test_a_mailbox_cannot_be_flooded(
    client: AsyncClient, database: Database, mailbox: Mailbox
) -> None:
    await add_user(database)

    responses = [await request_reset(client) for _ in range(5)]
    responses += [await client.post(f"{USERS}/", json={"email": EMAIL}) for _ in range(5)]

    assert {each.status_code for each in responses} == {202}
    assert 1 <= len(await mailbox.mails()) <= 6  # three of each kind


async def test_others_cannot_use_up_the_mails_of_an_owner(
    log_in: LogIn, client: AsyncClient, database: Database, mailbox: Mailbox
) -> None:
    """Requests that send nothing leave the owner's budget alone."""
    ann, eve = await add_user(database), await log_in(email="eve@example.com")
    body = {"email": ann.email, "password": PASSWORD}
    for _ in range(5):
        await eve.post(f"{USERS}/me/email", json=body)
        await request_reset(client, "new@example.com")
    assert ann.email not in {mail["To"] for mail in await mailbox.mails()}

    await request_reset(client)
    assert (await mailbox.last(ann.email))["To"] == ann.email
    await client.post(f"{USERS}/", json={"email": "new@example.com"})
    assert await mailbox.last("new@example.com")


async def test_a_client_that_is_blocked_does_not_use_up_the_mails_of_others(
    client: AsyncClient, database: Database
) -> None:
    await add_user(database)
    for number in range(login_throttle.MAIL_CLIENT.free + 1):
        await request_reset(client, f"{number}@example.com")
    assert {(await request_reset(client)).status_code for _ in range(5)} == {429}

    assert await login_throttle.may_mail(database, UserMail.RESET_PASSWORD, EMAIL, "192.0.2.7")


async def test_every_invalid_token_gets_the_same_response(
    client: AsyncClient, database: Database
) -> None:
    user = await add_user(database)
    used, expired = await issue(database, user), ""
    await set_password(client, "reset-password", used)
    expired = await issue(database, user)
    async with database.transaction() as db:
        await db.execute(
            update(OneTimeToken)
            .where(OneTimeToken.token_hash == tokens.hash_of(expired))
            .values(expires_at=func.now())
        )
    replaced = await issue(database, user, TokenPurpose.VERIFY_EMAIL)
    foreign = await issue(database, user, TokenPurpose.VERIFY_EMAIL)
    session = await start_session(database, user)

    bodies = [
        without_ids(await set_password(client, page, token))
        for page, token in [
            ("reset-password", used),
            ("reset-password", expired),
            ("reset-password", foreign),
            ("verify-email", replaced),
            ("reset-password", session),
            ("reset-password", tokens.create(tokens.ONE_TIME)),
            ("reset-password", ""),
            ("reset-password", "é\0"),
        ]
    ]

    assert bodies == [bodies[0]] * len(bodies)
    assert bodies[0]["status"] == 422
    assert (await set_password(client, "verify-email", foreign)).status_code == 204


async def test_a_refused_password_does_not_use_up_the_token(
    client: AsyncClient, database: Database
) -> None:
    token = await issue(database, await add_user(database))

    refused = await set_password(client, "reset-password", token, password=EMAIL)

    assert refused.status_code == 422
    assert refused.json()["title"] == "Password not accepted"
    assert (await set_password(client, "reset-password", token)).status_code == 204


async def test_of_parallel_requests_with_a_token_one_succeeds(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    token = await issue(committing_database, await add_user(committing_database))

    responses = await asyncio.gather(
        *(set_password(committing_client, "reset-password", token) for _ in range(6))
    )

    assert sorted(each.status_code for each in responses) == [204] + [422] * 5


async def test_a_new_password_invalidates_all_tokens(
    client: AsyncClient, database: Database
) -> None:
    user = await add_user(database)
    change = await issue(database, user, TokenPurpose.CHANGE_EMAIL, NEW_EMAIL)
    reset = await issue(database, user)

    assert (await set_password(client, "reset-password", reset)).status_code == 204

    confirmed = await client.post(f"{USERS}/change-email", json={"token": change})
    assert confirmed.status_code == 422


async def test_a_stored_response_never_has_a_secret(
    client: AsyncClient, database: Database
) -> None:
    """An idempotency key has no effect."""
    token = await issue(database, await add_user(database))
    client.headers["Idempotency-Key"] = "a"

    assert (await set_password(client, "reset-password", token)).status_code == 204
    assert (await set_password(client, "reset-password", token)).status_code == 422


class TestChangeOfEmail:
    async def test_the_new_address_confirms_it(
        self, log_in: LogIn, client: AsyncClient, mailbox: Mailbox
    ) -> None:
        """The old one gets a notice without a link, and its tokens end."""
        ann = await log_in()
        await request_reset(client)
        reset = token_in(await mailbox.last(EMAIL))

        response = await self.request(ann)

        assert response.status_code == 202
        notice, mail = (await mailbox.mails())[1:]
        assert (notice["To"], mail["To"]) == (EMAIL, NEW_EMAIL)
        assert "http" not in text_of(notice)
        assert NEW_EMAIL not in text_of(notice)
        token = token_in(mail)
        assert (await ann.get(f"{USERS}/me")).json()["email"] == EMAIL
        assert (await self.confirm(client, token)).status_code == 204
        assert (await ann.get(f"{USERS}/me")).json()["email"] == NEW_EMAIL
        assert (await self.confirm(client, token)).status_code == 422
        assert (await set_password(client, "reset-password", reset)).status_code == 422

    async def test_needs_the_password(self, log_in: LogIn, mailbox: Mailbox) -> None:
        ann = await log_in()

        response = await self.request(ann, password="wrong")

        assert response.status_code == 403
        assert await mailbox.mails() == []

    async def test_needs_a_user(self, client: AsyncClient) -> None:
        assert (await self.request(client)).status_code == 403

    async def test_does_not_tell_whether_an_address_is_taken(
        self, log_in: LogIn, database: Database, mailbox: Mailbox
    ) -> None:
        ann = await log_in()
        await add_user(database, "bob@example.com")

        taken, free = await self.request(ann, email="Bob@example.com"), await self.request(ann)

        assert (taken.status_code, taken.content) == (free.status_code, free.content)
        to = [mail["To"] for mail in await mailbox.mails()]
        assert "bob@example.com" not in {each.lower() for each in to}
        assert to.count(EMAIL) == 2

    async def test_an_address_that_was_taken_since_is_refused(
        self, log_in: LogIn, client: AsyncClient, database: Database, mailbox: Mailbox
    ) -> None:
        ann = await log_in()
        await self.request(ann)
        token = token_in(await mailbox.last(NEW_EMAIL))
        await add_user(database, NEW_EMAIL.upper())

        response = await self.confirm(client, token)

        assert response.status_code == 422
        assert response.json()["title"] == "Invalid token"
        assert (await ann.get(f"{USERS}/me")).json()["email"] == EMAIL

    async def test_an_account_that_no_one_confirmed_does_not_hold_the_address(
        self, log_in: LogIn, client: AsyncClient, mailbox: Mailbox
    ) -> None:
        """Otherwise, anyone could keep a user from changing to an address."""
        ann = await log_in()
        await client.post(f"{USERS}/", json={"email": NEW_EMAIL})
        sign_up = token_in(await mailbox.last(NEW_EMAIL))

        await self.request(ann)
        token = token_in(await mailbox.last(NEW_EMAIL))

        assert (await self.confirm(client, token)).status_code == 204
        assert (await ann.get(f"{USERS}/me")).json()["email"] == NEW_EMAIL
        assert (await set_password(client, "verify-email", sign_up)).status_code == 422

    async def test_may_change_only_the_case(
        self, log_in: LogIn, client: AsyncClient, mailbox: Mailbox
    ) -> None:
        ann = await log_in()
        await self.request(ann, email="Ann@example.com")

        token = token_in(await mailbox.last("Ann@example.com"))

        assert (await self.confirm(client, token)).status_code == 204

    @staticmethod
    async def request(
        client: AsyncClient, email: str = NEW_EMAIL, password: str = PASSWORD
    ) -> Response:
        body = {"email": email, "password": password}
        return await client.post(f"{USERS}/me/email", json=body)

    @staticmethod
    async def confirm(client: AsyncClient, token: str) -> Response:
        return await client.post(f"{USERS}/change-email", json={"token": token})


async def test_links_do_not_depend_on_the_host_of_the_request(
    client: AsyncClient, mailbox: Mailbox, settings: Settings
) -> None:
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    await client.post(f"{USERS}/", json={"email": EMAIL}, headers=headers)

    mail = await mailbox.last(EMAIL)

    assert "evil.example" not in str(mail)
    assert settings.PUBLIC_URL in text_of(mail)


async def test_a_token_is_stored_as_a_hash_only(
    client: AsyncClient, db: AsyncSession, mailbox: Mailbox
) -> None:
    await client.post(f"{USERS}/", json={"email": EMAIL})
    token = token_in(await mailbox.last(EMAIL))

    assert await db.scalar(select(OneTimeToken.token_hash)) == tokens.hash_of(token)
    assert await db.scalar(select(func.count(LoginSession.id))) == 0


async def test_an_error_does_not_repeat_a_secret(client: AsyncClient) -> None:
    response = await set_password(client, "reset-password", "onetime_" + "a" * 300)

    assert response.status_code == 422
    assert "onetime_" not in response.text
    assert NEW_PASSWORD not in response.text


async def test_of_two_users_one_gets_an_address(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    issued = [
        await issue(
            committing_database,
            await add_user(committing_database, email),
            TokenPurpose.CHANGE_EMAIL,
            NEW_EMAIL,
        )
        for email in (EMAIL, "bob@example.com")
    ]

    responses = await asyncio.gather(
        *(
            committing_client.post(f"{USERS}/change-email", json={"token": token})
            for token in issued
        )
    )

    assert sorted(each.status_code for each in responses) == [204, 422]
