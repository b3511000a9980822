"""What a scheduled job writes is forgotten by the cache, as what a request writes is."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pydantic import SecretStr
from sqlalchemy import URL, select

from src.cache import Cache, MemoryBackend, cached, use_cache
from src.core.config import Settings
from src.db.models.item import Item
from src.db.session import Database
from src.schedulers import open_scheduler
from src.schedulers.context import transaction


@pytest.fixture
async def scheduled(
    committing_url: URL, committing_database: Database
) -> AsyncGenerator[asyncio.Event]:
    """Yield what lets a job write, and is cleared once it has."""
    written = asyncio.Event()

    async def write() -> None:
        await written.wait()
        async with transaction() as db:
            db.add(Item(name="Lamp"))
        written.clear()

    def setup(scheduler: AsyncIOScheduler) -> None:
        now = datetime.now(UTC)
        scheduler.add_job(write, "interval", hours=1, id="write", next_run_time=now)

    settings = Settings(
        ENV="test", DATABASE_URL=SecretStr(committing_url.render_as_string(hide_password=False))
    )
    with use_cache(Cache(MemoryBackend(), ttl=60)):
        async with open_scheduler(settings, committing_database, setup=setup):
            yield written


async def test_a_job_invalidates(scheduled: asyncio.Event, committing_database: Database) -> None:
    reads = 0

    @cached(key="names", tags=["items"])
    async def names() -> list[str]:
        nonlocal reads
        reads += 1
        async with committing_database.reads() as session:
            return list(await session.scalars(select(Item.name)))

    assert (await names(), await names(), reads) == ([], [], 1)
    scheduled.set()
    async with asyncio.timeout(60):
        while scheduled.is_set():  # noqa: ASYNC110 - an event has no waiting for its clearing
            await asyncio.sleep(0.02)

    assert await names() == ["Lamp"]
