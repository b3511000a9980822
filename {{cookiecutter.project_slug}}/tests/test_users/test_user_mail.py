"""Mails to users are sent, retried or refused, and reveal nothing in logs."""

import logging
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from uuid import uuid4

import pytest

from src.core.config import Settings
from src.db import Database
from src.domain.user import TokenPurpose, UserMail
from src.mail.errors import MailError
from src.mail.message import compose
from src.repositories.user import OneTimeTokenRepository
from src.services import user_mail
from src.services.user_mail import send_user_mail
from tests.fixtures.mail import token_in
from tests.fixtures.users import EMAIL, add_user
from tests.test_mail.smtp import smtp_server


def configured(settings: Settings, port: int) -> Settings:
    values = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": port, "SMTP_TLS": "none"}
    return settings.model_copy(update=values)


async def test_a_retry_sends_another_token(settings: Settings, database: Database) -> None:
    user = await add_user(database)
    async with smtp_server({"DATA": "451 Try later"}) as server:
        settings = configured(settings, server.port)
        with pytest.raises(MailError):
            await send_user_mail(database, settings, UserMail.RESET_PASSWORD, user.id)
        await send_user_mail(database, settings, UserMail.RESET_PASSWORD, user.id)

    first, second = server.mails
    assert token_in(first) != token_in(second)


async def test_a_refused_mail_is_only_logged(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the user's ID, but no address and no token."""
    user = await add_user(database)
    caplog.set_level(logging.INFO)
    async with smtp_server({"RCPT": f"550 No mailbox {EMAIL}"}) as server:
        settings = configured(settings, server.port)
        await send_user_mail(database, settings, UserMail.RESET_PASSWORD, user.id)

    assert not server.mails
    assert "mail_refused" in caplog.text
    assert str(user.id) in caplog.text
    assert EMAIL not in caplog.text
    assert "onetime_" not in caplog.text


async def test_the_old_address_has_its_notice_before_the_new_one_gets_a_link(
    settings: Settings, database: Database
) -> None:
    user, new_email = await add_user(database), "new@example.com"
    lifetime, purpose = timedelta(hours=1), TokenPurpose.CHANGE_EMAIL
    async with database.transaction() as db:
        await OneTimeTokenRepository(db).issue(user.id, purpose, lifetime, new_email)

    async with smtp_server({"RCPT": "451 Try later"}) as server:
        settings = configured(settings, server.port)
        with pytest.raises(MailError):
            await send_user_mail(database, settings, UserMail.CHANGE_EMAIL, user.id)
        assert not server.mails
        await send_user_mail(database, settings, UserMail.CHANGE_EMAIL, user.id)

    assert [mail["To"] for mail in server.mails] == [EMAIL, new_email]


@pytest.mark.parametrize("exists", [True, False])
async def test_each_request_composes_one_mail(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, *, exists: bool
) -> None:
    """Otherwise, other requests to the process would show by their duration who has an account."""
    composed = []

    def note(*arguments: Any, **values: Any) -> EmailMessage:
        composed.append(arguments)
        return compose(*arguments, **values)

    monkeypatch.setattr(user_mail, "compose", note)
    user_id = (await add_user(database)).id if exists else uuid4()
    async with smtp_server() as server:
        settings = configured(settings, server.port)
        await send_user_mail(database, settings, UserMail.RESET_PASSWORD, user_id)

    assert len(composed) == 1
    assert len(server.mails) == exists


@pytest.mark.parametrize("mail", UserMail)
async def test_without_a_user_nothing_is_sent(
    settings: Settings, database: Database, mail: UserMail
) -> None:
    async with smtp_server() as server:
        await send_user_mail(database, configured(settings, server.port), mail, uuid4())

    assert not server.mails
