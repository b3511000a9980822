"""Mails are sent after the response, with a few attempts."""

import asyncio
import importlib
import logging
from pathlib import Path

import pytest
from fastapi import FastAPI

from src.api import mails as selected
from src.core.config import Settings
from src.db import Database
from src.domain.user import UserMail
from tests.fixtures.client import connect
from tests.fixtures.environment import API
from tests.fixtures.mail import token_in
from tests.fixtures.users import EMAIL, add_user
from tests.test_mail.smtp import SMTPServer, smtp_server

# The template has both ways to send mails; a service has one.
NAMES = [path.stem for path in Path(selected.__file__).parent.glob("mails*.py")]
mails = importlib.import_module(f"src.api.{max(NAMES)}")


def configured(settings: Settings, server: SMTPServer) -> Settings:
    values = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": server.port, "SMTP_TLS": "none"}
    return settings.model_copy(update=values)


async def test_a_mail_is_sent_after_the_response(
    fresh_app: FastAPI, database: Database, settings: Settings
) -> None:
    fresh_app.dependency_overrides[selected.get_mails] = mails.get_mails
    await add_user(database)
    async with (
        smtp_server() as server,
        connect(fresh_app, database, configured(settings, server)) as client,
    ):
        response = await client.post(f"{API}/users/forgot-password", json={"email": EMAIL})

    assert response.status_code == 202
    assert [token_in(mail)[:8] for mail in server.mails] == ["onetime_"]


async def test_a_mail_is_tried_again(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mails, "PAUSES", (0,))
    user = await add_user(database)
    async with smtp_server({"RCPT": "451 Try later"}) as server:
        settings = configured(settings, server)
        await mails.send_after_response(database, settings, UserMail.RESET_PASSWORD, user.id)

    assert len(server.mails) == 1


async def test_a_mail_that_is_lost_is_logged(
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(mails, "PAUSES", (0,))
    user = await add_user(database)
    async with smtp_server({"RCPT": "451 Try later", "DATA": "451 Try later"}) as server:
        settings = configured(settings, server)
        await mails.send_after_response(database, settings, UserMail.RESET_PASSWORD, user.id)

    assert caplog.text.count("mail_postponed") == 1
    assert "mail_lost" in caplog.text
    assert EMAIL not in caplog.text


async def test_a_mail_that_waits_when_the_process_stops_is_logged(
    database: Database, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    user = await add_user(database)
    async with smtp_server({"RCPT": "451 Try later"}) as server:
        settings = configured(settings, server)
        sending = mails.send_after_response(database, settings, UserMail.RESET_PASSWORD, user.id)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sending, 0.5)  # and cancel it

    assert "mail_lost" in caplog.text
