"""The context functions of tasks."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import func, select

from src.api.deps import DbSession
from src.core.config import Settings
from src.core.context import current_context
from src.core.trace import principal_id, request_id, traceparent
from src.db.session import Database
from src.tasks import context
from src.tasks import enqueue as enqueue_in
from src.tasks.engine.brokers.base import TaskBroker
from tests.fixtures.client import connect, create_key
from tests.fixtures.notes import Note
from tests.test_tasks.actors import words
from tests.test_tasks.workers import LIMIT, enqueue, eventually, working

IN_LOOP = (
    "This would block the event loop: `await` the coroutine instead of calling run(), and"
    " enqueue() the actor instead of calling it."
)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_task_has_the_context_of_its_own_message(broker: TaskBroker, queue: str) -> None:
    """Nothing is left over from the previous task in the same thread."""
    seen: list[object] = []

    def look(how: str) -> None:
        logged = structlog.contextvars.get_contextvars()
        origin = (principal_id.get(), request_id.get(), traceparent.get())
        seen.append((context.message_id(), *origin, logged))
        structlog.contextvars.bind_contextvars(left="behind")
        for variable in (principal_id, request_id):
            variable.set("left behind")
        if how == "fails":
            raise ValueError

    actor = dramatiq.actor(queue_name=queue, broker=broker, max_retries=0)(look)
    cases = (("fails", None), ("works", None), ("is too old", 1), ("works", None))
    messages = [
        actor.message_with_options(
            args=(how,), max_age=age, principal=f"user:{how}", request_id=how, traceparent=TRACE
        )
        for how, age in cases
    ]
    messages.append(actor.message("works"))
    for message in messages:
        broker.enqueue(message)
    await asyncio.sleep(0.01)
    async with working(broker, threads=1):
        await eventually(lambda: len(seen) == 4, "all tasks except the old one")

    del messages[2]
    assert seen == [
        (
            message.message_id,
            message.options.get("principal"),
            message.options.get("request_id"),
            message.options.get("traceparent"),
            {"task": message.message_id, "actor": "look"},
        )
        for message in messages
    ]


@pytest.mark.usefixtures("relay")
async def test_principal_of_a_request_reaches_the_tasks_of_its_tasks(
    fresh_app: FastAPI, committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    seen: list[str | None] = []

    @dramatiq.actor(queue_name=queue, broker=broker)
    async def second() -> None:
        seen.append(principal_id.get())

    @dramatiq.actor(queue_name=queue, broker=broker)
    async def first() -> None:
        seen.append(principal_id.get())
        async with context.transaction() as db:
            await enqueue_in(db, second)

    @fresh_app.post("/work")
    async def work(db: DbSession) -> None:
        await enqueue_in(db, first)

    key = await create_key(committing_database)
    client = connect(fresh_app, committing_database)
    async with working(broker):
        assert (await client.post("/work", headers={"X-API-Key": key})).status_code == 200
        await eventually(lambda: len(seen) == 2, "both of them")

    assert seen == [f"api-key:{key.split('_')[1]}"] * 2


async def test_tasks_share_the_database_of_their_worker(
    broker: TaskBroker, queue: str, queue_settings: Settings
) -> None:
    both = threading.Barrier(2)
    seen: list[Any] = []

    def look() -> None:
        both.wait(LIMIT)
        seen.append(current_context())

    dramatiq.actor(queue_name=queue, broker=broker)(look)
    ids = {enqueue(broker, "look") for _ in range(2)}
    async with working(broker, threads=2):
        await eventually(lambda: len(seen) == 2, "both of them")

    assert {each.message_id for each in seen} == ids
    assert len({id(each.database) for each in seen}) == 1
    assert all(each.settings == queue_settings for each in seen)


async def test_a_sync_actor_can_run_a_coroutine(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    message_id = enqueue(broker, "add_note", str(path))
    async with working(broker):
        await eventually(lambda: words(path), "its end")

    assert words(path) == [message_id]
    async with committing_database.reads() as session:
        assert await session.scalar(select(func.count(Note.id))) == 1


async def test_asyncio_run_does_not_break_the_connections_of_other_tasks(
    broker: TaskBroker, queue: str
) -> None:
    results: list[object] = []

    async def use_database() -> None:
        async with context.transaction() as db:
            results.append(await db.scalar(select(1)))

    def run_a_loop() -> None:
        try:
            asyncio.run(use_database())
        except RuntimeError as error:
            results.append(str(error))

    for function in (run_a_loop, use_database):
        dramatiq.actor(queue_name=queue, broker=broker)(function)

    async def perform(actor: str) -> None:
        count = len(results)
        enqueue(broker, actor)
        await eventually(lambda: len(results) > count, actor)

    async with working(broker, threads=1):
        for actor in ("use_database", "run_a_loop", "use_database"):
            await perform(actor)

    assert results[::2] == [1, 1]
    assert "call run() of src.tasks.context" in str(results[1])


async def test_run_and_actors_are_rejected_in_an_event_loop(broker: TaskBroker, queue: str) -> None:
    """They would wait for the event loop that they block."""
    results: list[object] = []

    async def work() -> None: ...

    async def call_run() -> None:
        for call in (lambda: context.run(work()), actor):
            try:
                call()
            except RuntimeError as error:
                results.append(str(error))

    actor: Any = dramatiq.actor(queue_name=queue, broker=broker)(work)
    dramatiq.actor(queue_name=queue, broker=broker)(call_run)
    async with working(broker):
        enqueue(broker, "call_run")
        await eventually(lambda: len(results) == 2, "both errors")
    with pytest.raises(RuntimeError, match="would block the event loop"):
        actor()  # in a process that is not a worker

    assert results == [IN_LOOP] * 2


async def test_context_functions_need_a_task() -> None:
    async def work() -> None: ...

    assert context.message_id() is None
    with pytest.raises(RuntimeError, match="use `DbSession`"):
        context.transaction()
    with pytest.raises(RuntimeError, match="Only a worker can run this"):
        await asyncio.to_thread(context.run, work())


async def test_context_functions_work_without_a_worker(
    committing_database: Database, settings: Settings
) -> None:
    with context.use_context(context.TaskContext(settings, committing_database)):
        assert context.message_id() is None
        assert context.task_settings() is settings
        async with context.transaction() as db:
            await context.report_progress(db, done=1)
            db.add(Note(text="Lamp"))

    async with committing_database.reads() as session:
        assert await session.scalar(select(func.count(Note.id))) == 1
