"""The mail task of docs/recipes.md sends mail to a server that speaks SMTP."""

import asyncio

from src.core.config import Settings
from src.db.session import Database
from src.tasks import broker
from src.tasks.context import TaskContext, use_context
from tests.test_api.test_recipes import run_page

REPLIES = {b"DATA": b"354 Go ahead", b"QUIT": b"221 Bye"}


async def test_mail_reaches_the_server(database: Database, settings: Settings) -> None:
    received: list[bytes] = []

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        while line := await reader.readline():
            command = line.strip()
            writer.write(REPLIES.get(command.upper(), b"250 OK") + b"\r\n")
            if command.upper() == b"DATA":
                received.append(await reader.readuntil(b"\r\n.\r\n"))
                writer.write(b"250 OK\r\n")
        writer.close()

    actors = dict(broker.actors)
    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    settings = settings.model_copy(update={"SMTP_HOST": host, "SMTP_PORT": port})
    try:
        send_mail = run_page("recipes.md", only="smtplib")["send_mail"]
        with use_context(TaskContext(settings, database)):
            await asyncio.to_thread(send_mail.fn, "ann@example.com", "Welcome", "Hello!")
    finally:
        broker.actors = actors
        server.close()

    (mail,) = received
    assert b"To: ann@example.com" in mail
    assert b"Hello!" in mail
