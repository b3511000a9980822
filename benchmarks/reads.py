"""What reading an item costs, against the textbook: processor time per request, as a ratio.

The textbook is FastAPI's own tutorial with async SQLAlchemy: a session from a `yield` dependency, a
response model, and none of the service's middleware, metrics or headers. Both run in this process,
on one event loop and one database, in turns, so that the noise of the machine hits both.
"""

import asyncio
import contextlib
import logging
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import URL, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "{{cookiecutter.project_slug}}"
ROUNDS, REQUESTS = 7, 1500

os.environ |= {"ENV": "test", "ENV_FILE": "", "LOG_LEVEL": "ERROR"}
os.chdir(SERVICE)
sys.path.insert(0, str(SERVICE))

from alembic import command  # noqa: E402 - from here on, the service is on the path
from alembic.config import Config  # noqa: E402
from dev.postgres import embedded_postgres  # noqa: E402
from main import create_application  # noqa: E402
from src.core.config import get_settings  # noqa: E402
from src.db.models.item import Item  # noqa: E402
from src.db.session import open_database  # noqa: E402
from src.schemas.item import ItemResponse  # noqa: E402


def textbook(url: URL) -> FastAPI:
    sessions = async_sessionmaker(create_async_engine(url), expire_on_commit=False)
    app = FastAPI()

    async def get_db() -> AsyncGenerator[AsyncSession]:
        async with sessions() as session:
            yield session

    @app.get("/api/v1/items/{item_id}", response_model=ItemResponse)
    async def get_item(item_id: UUID, db: Annotated[AsyncSession, Depends(get_db)]) -> Item:
        item = (await db.execute(select(Item).where(Item.id == item_id))).scalar_one_or_none()
        if item is None:
            raise HTTPException(404)
        return item

    return app


async def cost(app: FastAPI, path: str, state: dict[str, Any]) -> float:
    """Return microseconds of processor time per request."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200  # noqa: S101, PLR2004 - nothing else is measured

    started = time.process_time()
    for _ in range(REQUESTS):
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
            "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": b"", "headers": [(b"host", b"localhost")], "state": dict(state),
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await app(scope, receive, send)
    return (time.process_time() - started) / REQUESTS * 1e6


async def compare(url: URL) -> None:
    settings = get_settings()
    apps = {"textbook": textbook(url), "service": create_application(settings)}
    logging.disable(logging.CRITICAL)
    async with open_database(url, pool_size=5) as database:
        async with database.transaction() as session:
            item = Item(name="Lamp")
            session.add(item)
            await session.flush()
        state = {"settings": settings, "database": database}
        costs: dict[str, list[float]] = {name: [] for name in apps}
        for _ in range(ROUNDS):
            for name, app in apps.items():
                costs[name].append(await cost(app, f"/api/v1/items/{item.id}", state))
    medians = {name: statistics.median(found) for name, found in costs.items()}
    for name, median in medians.items():
        ratio = medians["textbook"] / median
        sys.stdout.write(
            f"{name:10} {median:6.0f} µs a read   {ratio:.2f} of the textbook's rate\n"
        )


def main() -> None:
    with embedded_postgres() as server, contextlib.suppress(KeyboardInterrupt):
        server.create_database("app")
        url = make_url(server.url("app"))
        command.upgrade(Config("alembic.ini", attributes={"url": url}), "head")
        asyncio.run(compare(url))


if __name__ == "__main__":
    main()
