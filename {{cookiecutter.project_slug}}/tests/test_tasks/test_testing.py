"""The helpers of tests/fixtures/tasks.py."""

import asyncio
import time
from collections.abc import Iterator
from uuid import uuid4

import dramatiq
import pytest
from sqlalchemy import select

from src.db.session import Database
from src.tasks import broker, enqueue
from src.tasks.context import message_id, run, transaction
from tests.fixtures.notes import Note
from tests.fixtures.tasks import enqueued, run_task


@pytest.fixture(autouse=True)
def _undeclare() -> Iterator[None]:
    actors = dict(broker.actors)
    yield
    broker.actors = actors


async def test_run_task_awaits_an_async_actor(database: Database) -> None:
    @dramatiq.actor
    async def add(text: str, *, times: int = 1) -> str:
        async with transaction() as db:
            db.add_all([Note(text=text) for _ in range(times)])
        return f"{message_id()}"

    message: str = await run_task(database, add, "Buy bulbs", times=2)

    assert len(message) == len(str(uuid4()))
    async with database.reads() as db:
        assert list(await db.scalars(select(Note.text))) == ["Buy bulbs"] * 2


async def test_run_task_runs_a_sync_actor_in_a_thread(database: Database) -> None:
    @dramatiq.actor
    def add(text: str) -> int:
        async def store() -> None:
            async with transaction() as db:
                db.add(Note(text=text))

        time.sleep(0.01)  # blocks no event loop
        run(store())
        return 3

    assert await run_task(database, add, "Buy bulbs") == 3
    async with database.reads() as db:
        assert list(await db.scalars(select(Note.text))) == ["Buy bulbs"]


async def test_run_task_rejects_what_a_worker_cannot_get_or_store(database: Database) -> None:
    @dramatiq.actor(tracked=True)
    async def echo(value: object) -> object:
        return {value} if isinstance(value, str) else value

    assert await run_task(database, echo, (1, 2)) == [1, 2]
    with pytest.raises(TypeError, match="The argument value of echo cannot be stored"):
        await run_task(database, echo, uuid4())
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        await run_task(database, echo, "a")


async def test_run_task_raises_the_error_of_the_task(database: Database) -> None:
    @dramatiq.actor
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no bulbs")

    with pytest.raises(ValueError, match="no bulbs"):
        await run_task(database, fail)


async def test_enqueued_shows_the_arguments_of_what_was_committed(database: Database) -> None:
    @dramatiq.actor
    async def add(text: str, times: int = 1) -> None: ...

    @dramatiq.actor
    async def other() -> None: ...

    async with database.transaction() as db:
        await enqueue(db, add, "a", times=2)
        await enqueue(db, other)
        await enqueue(db, add, text="b")
    async with database.transaction() as db:
        await enqueue(db, add, "rolled back")
        await db.rollback()

    assert await enqueued(database, add) == [{"text": "a", "times": 2}, {"text": "b"}]
