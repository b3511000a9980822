"""An SMTP server for tests."""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from email.message import EmailMessage
from types import MappingProxyType
from typing import Any, cast

import aiosmtpd.smtp

from tests.fixtures.mail import parse

logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # the server's own lines


class SMTPServer:
    """What an SMTP server has received. It gives each of `responses` once: {"RCPT": "550 No"}."""

    def __init__(self, responses: Mapping[str, str]) -> None:
        self.port = 0
        self._responses = dict(responses)
        self.envelopes: list[aiosmtpd.smtp.Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []

    @property
    def mails(self) -> list[EmailMessage]:
        return [parse(cast(bytes, each.content)) for each in self.envelopes]

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: object, _session: object, envelope: Any, address: str, _options: object
    ) -> str:
        envelope.rcpt_tos.append(address)
        return self._responses.pop("RCPT", "250 OK")

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: object, _session: object, envelope: aiosmtpd.smtp.Envelope
    ) -> str:
        self.envelopes.append(envelope)
        return self._responses.pop("DATA", "250 OK")

    def authenticate(
        self, _server: object, _session: object, _envelope: object, _mechanism: str, data: Any
    ) -> aiosmtpd.smtp.AuthResult:
        self.logins.append((data.login, data.password))
        return aiosmtpd.smtp.AuthResult(success=data.password == b"correct", handled=False)


@asynccontextmanager
async def smtp_server(
    responses: Mapping[str, str] = MappingProxyType({}),
    *,
    tls: ssl.SSLContext | None = None,
    implicit: ssl.SSLContext | None = None,
    login: bool = False,
) -> AsyncGenerator[SMTPServer]:
    """Serve SMTP on 127.0.0.1. `tls` is the context of STARTTLS, `implicit` that of the port."""
    server = SMTPServer(responses)

    def connect() -> aiosmtpd.smtp.SMTP:
        return aiosmtpd.smtp.SMTP(
            server,
            hostname="localhost",
            tls_context=tls,
            auth_require_tls=False,
            authenticator=server.authenticate if login else None,
            loop=asyncio.get_running_loop(),
        )

    listener = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0, ssl=implicit)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


@asynccontextmanager
async def tcp_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[int]:
    """Yield the port of a server that misbehaves. At the end, wait for its connections."""
    connections: list[asyncio.Future[None]] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = asyncio.get_running_loop().create_future()
        connections.append(ended)
        await serve(reader, writer)
        await reader.read()
        writer.close()
        ended.set_result(None)

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*connections)
