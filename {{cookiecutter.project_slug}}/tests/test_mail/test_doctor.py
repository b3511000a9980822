"""The check of `python cli.py doctor` for the SMTP server."""

import pytest
from pydantic import SecretStr

from src.core.config import Settings
from src.doctor import CheckError
from src.mail.doctor import check_mail
from tests.test_mail.smtp import smtp_server

SERVER = {"SMTP_HOST": "127.0.0.1", "SMTP_TLS": "none", "SMTP_USER": "shop"}


async def test_it_logs_in_and_sends_nothing(settings: Settings) -> None:
    async with smtp_server(login=True) as server:
        values = {**SERVER, "SMTP_PORT": server.port, "SMTP_PASSWORD": SecretStr("correct")}

        found = await check_mail(settings.model_copy(update=values))

        wrong = settings.model_copy(update={**values, "SMTP_PASSWORD": SecretStr("hunter2")})
        with pytest.raises(CheckError, match="SMTPAuthenticationError: code 535") as failed:
            await check_mail(wrong)

    assert found == f"127.0.0.1:{server.port}"
    assert "hunter2" not in str(failed.value)
    assert server.envelopes == []


async def test_a_server_that_does_not_respond_fails(settings: Settings) -> None:
    closed = settings.model_copy(update={**SERVER, "SMTP_PORT": 1})
    with pytest.raises(CheckError, match="correct its settings"):
        await check_mail(closed)


async def test_development_has_no_server(settings: Settings) -> None:
    assert await check_mail(settings) is None
