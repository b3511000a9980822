"""Mails reach an SMTP server, or fail with an error that says whether to try again."""

import asyncio
import shutil
import ssl
import subprocess
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from src.core.config import Settings
from src.mail import delivery, development
from src.mail.delivery import deliver
from src.mail.errors import MailError, MailRefusedError
from src.mail.message import compose
from tests.fixtures.commands import free_port
from tests.fixtures.mail import parse, text_of
from tests.test_mail.smtp import smtp_server, tcp_server

OPENSSL = shutil.which("openssl") or ""
needs_openssl = pytest.mark.skipif(not OPENSSL, reason="the test needs openssl for a certificate")
LOGIN = {"SMTP_USER": "shop", "SMTP_PASSWORD": SecretStr("correct")}


def configured(settings: Settings, port: object, **others: Any) -> Settings:
    values = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": int(str(port)), "SMTP_TLS": "none", **others}
    return settings.model_copy(update=values)


@pytest.fixture
def mail(settings: Settings) -> EmailMessage:
    return compose(settings, "password_changed", to="ann@example.com")


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that the client does not trust."""
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/certificate.pem"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [OPENSSL, "req", "-x509", "-days", "1", *key, *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    return context


async def test_the_server_receives_the_mail(settings: Settings, mail: EmailMessage) -> None:
    async with smtp_server() as server:
        await deliver(configured(settings, server.port), mail)

    [envelope], [received] = server.envelopes, server.mails
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@localhost", ["ann@example.com"])
    assert received["To"] == "ann@example.com"
    assert received["Subject"] == mail["Subject"]
    assert "password" in text_of(received)
    assert "<p>" in text_of(received, "html")


@needs_openssl
@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_tls_needs_a_trusted_certificate(
    settings: Settings,
    mail: EmailMessage,
    mode: str,
    certificate: ssl.SSLContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The account is sent only after that."""
    tls, implicit = (certificate, None) if mode == "starttls" else (None, certificate)
    async with smtp_server(tls=tls, implicit=implicit, login=True) as server:
        settings = configured(settings, server.port, SMTP_TLS=mode, **LOGIN)
        with pytest.raises(MailError):
            await deliver(settings, mail)
        assert not server.logins

        monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/certificate.pem")
        await deliver(settings, mail)

    assert server.logins == [(b"shop", b"correct")]
    assert len(server.mails) == 1


async def test_nothing_is_sent_to_a_server_without_starttls(
    settings: Settings, mail: EmailMessage
) -> None:
    async with smtp_server(login=True) as server:
        with pytest.raises(MailError, match="STARTTLS"):
            await deliver(configured(settings, server.port, SMTP_TLS="starttls", **LOGIN), mail)

    assert not server.logins


@pytest.mark.parametrize(
    ("command", "response", "is_final"),
    [
        ("RCPT", "550 5.1.1 No mailbox ann@example.com", True),
        ("DATA", "554 5.7.1 Spam for ann@example.com", True),
        ("RCPT", "450 4.2.0 Greylisted ann@example.com", False),
        ("DATA", "451 4.3.0 Try later", False),
    ],
)
async def test_a_mail_that_is_refused_for_good_is_not_tried_again(
    settings: Settings, mail: EmailMessage, command: str, response: str, *, is_final: bool
) -> None:
    """The error has the code, but no address."""
    async with smtp_server({command: response}) as server:
        with pytest.raises(MailError, match=f"code {response[:3]}$") as caught:
            await deliver(configured(settings, server.port), mail)

    assert isinstance(caught.value, MailRefusedError) == is_final
    assert caught.value.__suppress_context__  # its message has the address


async def test_a_wrong_account_is_tried_again(settings: Settings, mail: EmailMessage) -> None:
    """The account is not a property of the mail, and an operator can correct it."""
    wrong = {"SMTP_USER": "shop", "SMTP_PASSWORD": SecretStr("hunter2")}
    async with smtp_server(login=True) as server:
        with pytest.raises(MailError, match="code 535") as caught:
            await deliver(configured(settings, server.port, **wrong), mail)

    assert not isinstance(caught.value, MailRefusedError)


async def test_a_server_that_is_away_or_silent_is_tried_again(
    settings: Settings, mail: EmailMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "STEP_SECONDS", 0.1)

    async def hang(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None: ...

    with pytest.raises(MailError):
        await deliver(configured(settings, free_port()), mail)
    async with tcp_server(hang) as port:
        with pytest.raises(MailError, match="imed out"):
            await deliver(configured(settings, port), mail)


async def test_a_server_that_answers_slowly_has_a_limit(
    settings: Settings, mail: EmailMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is quick enough, but all together take too long."""
    monkeypatch.setattr(delivery, "DELIVERY_SECONDS", 0.3)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        while await reader.readline():
            await asyncio.sleep(0.2)
            writer.write(b"250 OK\r\n")

    async with tcp_server(drip) as port:
        with pytest.raises(MailError, match="TimeoutError"):
            await deliver(configured(settings, port), mail)


async def test_without_a_server_mails_are_shown_and_stored(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The terminal shows the link, in which a log line would mask the token."""
    monkeypatch.setattr(development, "FOLDER", tmp_path / "mail")
    link = "http://localhost:3000/reset-password#token=abc"
    mail = compose(
        settings,
        "reset_password",
        to="ann@example.com",
        link=link,
        token="abc",
        lifetime="an hour",
    )

    await deliver(settings, mail)

    shown = capsys.readouterr().err
    assert "Mail to ann@example.com: Set a new password for" in shown
    assert f"\n{link}\n" in shown
    [path] = (tmp_path / "mail").iterdir()
    assert text_of(parse(path.read_bytes())) == text_of(mail)
    assert path.name.endswith(".eml")
    assert "-set-a-new-password-for-" in path.name
