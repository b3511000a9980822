"""Tasks read through the cache, and what they write is forgotten by it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import dramatiq
import pytest
from sqlalchemy import select

from src import cache
from src.cache import Cache, MemoryBackend, cached
from src.core.config import Settings
from src.db.models.item import Item
from src.tasks import context
from src.tasks.engine.brokers.base import TaskBroker
from tests.test_tasks.conftest import broker, queue, queue_settings, server, variables
from tests.test_tasks.workers import enqueue, eventually, working

__all__ = ["broker", "queue", "queue_settings", "server", "variables"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Cache]:
    """The caches that were opened, one for each worker; here they are in memory."""
    caches: list[Cache] = []

    @asynccontextmanager
    async def open_cache(_: Settings) -> AsyncGenerator[Cache]:
        caches.append(Cache(MemoryBackend(), ttl=60))
        yield caches[-1]

    monkeypatch.setattr(cache, "open_cache", open_cache)
    return caches


async def test_a_task_uses_the_cache_of_its_worker(
    broker: TaskBroker, queue: str, opened: list[Cache], tmp_path: Path
) -> None:
    """One for all its threads; what a task writes the next one reads."""
    reads, seen = 0, list[list[str]]()

    @cached(key="names", tags=["items"])
    async def names() -> list[str]:
        nonlocal reads
        reads += 1
        async with context.transaction() as db:
            return list(await db.scalars(select(Item.name)))

    async def look() -> None:
        seen.append(await names())

    dramatiq.actor(queue_name=queue, broker=broker)(look)
    async with working(broker, threads=3):
        for count in (1, 2):
            enqueue(broker, "look")
            await eventually(lambda: len(seen) == count, "a look")  # noqa: B023 - called at once
        enqueue(broker, "call", str(tmp_path / "words"))  # it adds a lamp
        await eventually((tmp_path / "words").exists, "a lamp")
        enqueue(broker, "look")
        await eventually(lambda: len(seen) == 3, "the last look")

    assert (seen, reads, len(opened)) == ([[], [], ["Lamp"]], 2, 1)
