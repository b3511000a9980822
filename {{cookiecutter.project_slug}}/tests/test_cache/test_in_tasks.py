"""Tasks use the cache, and their changes invalidate it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import dramatiq
import pytest
from sqlalchemy import select

from src import cache
from src.cache import Cache, MemoryBackend, cached
from src.core.config import Settings
from src.tasks import context
from src.tasks.engine.brokers.base import TaskBroker
from tests.fixtures.notes import Note
from tests.test_tasks.conftest import broker, open_broker, queue, queue_settings, server, variables
from tests.test_tasks.workers import enqueue, eventually, working

__all__ = ["broker", "open_broker", "queue", "queue_settings", "server", "variables"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Cache]:
    """The caches that workers opened; they are in memory here."""
    caches: list[Cache] = []

    @asynccontextmanager
    async def open_cache(_: Settings) -> AsyncGenerator[Cache]:
        caches.append(Cache(MemoryBackend(), ttl=60))
        yield caches[-1]

    monkeypatch.setattr(cache, "open_cache", open_cache)
    return caches


async def test_tasks_share_the_cache_of_their_worker(
    broker: TaskBroker, queue: str, opened: list[Cache]
) -> None:
    """All threads use the same cache. A task reads the changes of the previous one."""
    reads, seen = 0, list[list[str]]()

    @cached(key="texts", tags=["notes"])
    async def texts() -> list[str]:
        nonlocal reads
        reads += 1
        async with context.transaction() as db:
            return list(await db.scalars(select(Note.text)))

    async def read() -> None:
        seen.append(await texts())

    async def write() -> None:
        async with context.transaction() as db:
            db.add(Note(text="new"))
        await read()

    for actor in (read, write):
        dramatiq.actor(queue_name=queue, broker=broker, actor_name=actor.__name__)(actor)
    async with working(broker, threads=3):
        for count, name in enumerate(["read", "read", "write", "read"], start=1):
            enqueue(broker, name)
            await eventually(lambda: len(seen) == count, name)  # noqa: B023 - called immediately

    assert (seen, reads, len(opened)) == ([[], [], ["new"], ["new"]], 2, 1)
