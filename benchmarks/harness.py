"""The service in this process, a database, and the cost of a request in processor time."""

import asyncio
import contextlib
import os
import time
from collections.abc import Generator
from typing import Any

from services import SERVICE

REQUESTS, CONCURRENCY = 1600, 32

os.environ |= {"ENV": "test", "ENV_FILE": "", "LOG_LEVEL": "ERROR"}
os.chdir(SERVICE)

from alembic import command  # noqa: E402 - from here on, the service is on the path
from alembic.config import Config  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from sqlalchemy import URL, make_url  # noqa: E402

from dev.postgres import embedded_postgres  # noqa: E402
from src.db.models.item import Item  # noqa: E402
from src.db.session import Database  # noqa: E402


@contextlib.contextmanager
def migrated() -> Generator[URL]:
    with embedded_postgres() as server:
        url = make_url(server)
        command.upgrade(Config("alembic.ini", attributes={"url": url}), "head")
        yield url


async def an_item(database: Database) -> str:
    """Create an item; return its path."""
    async with database.transaction() as session:
        item = Item(name="Lamp")
        session.add(item)
        await session.flush()
        return f"/api/v1/items/{item.id}"


async def cost(
    app: FastAPI,
    path: str,
    state: dict[str, Any],
    *headers: tuple[bytes, bytes],
    clients: int = CONCURRENCY,
) -> float:
    """Return microseconds of processor time per request, with concurrent clients."""

    async def receive() -> dict[str, Any]:
        # The watch of a slow request waits for this. A message each time would never end.
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200  # noqa: S101, PLR2004 - other responses are not measured

    async def client() -> None:
        for _ in range(REQUESTS // clients):
            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
                "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode(),
                "root_path": "", "query_string": b"", "headers": [(b"host", b"localhost"), *headers],
                "state": dict(state), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            }  # fmt: skip
            await app(scope, receive, send)
            await asyncio.sleep(0)  # a real request comes from the event loop, after waiting ones

    started = time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    return (time.process_time() - started) / REQUESTS * 1e6
