"""What a task finds, and that it finds nothing of another one."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import structlog
from asgi_correlation_id import correlation_id
from sqlalchemy import func, select

from src.core.config import Settings
from src.core.context import current_context
from src.core.trace import traceparent
from src.db.models.item import Item
from src.db.session import Database
from src.tasks import context, enqueue
from src.tasks.engine.brokers.base import TaskBroker
from tests.test_tasks.actors import words
from tests.test_tasks.workers import LIMIT, Logs, events, eventually, send, working

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@contextmanager
def request(name: str, trace: str) -> Iterator[None]:
    tokens = correlation_id.set(name), traceparent.set(trace)
    yield
    correlation_id.reset(tokens[0])
    traceparent.reset(tokens[1])


@pytest.mark.usefixtures("relay")
async def test_log_lines_name_the_request_the_trace_and_the_task(
    committing_database: Database,
    broker: TaskBroker,
    logs: Logs,
) -> None:
    """Each of its own, one after another in the same thread."""
    with request("the request", TRACE):
        task_id = await send(committing_database, broker, "say", "from a request")
    await send(committing_database, broker, "say", "from elsewhere")
    async with working(broker, threads=1):
        await eventually(lambda: len(events(logs, "said")) == 2, "two lines")

    told = {line["word"]: line for line in events(logs, "said")}
    first, second = told["from a request"], told["from elsewhere"]
    assert (first["request_id"], first["trace_id"]) == ("the request", TRACE_ID)
    assert (first["task"], first["actor"]) == (task_id, "say")
    assert {"request_id", "trace_id"}.isdisjoint(second)
    assert second["task"] != task_id


async def test_nothing_leaks_into_the_next_task(broker: TaskBroker, queue: str) -> None:
    """However the one before has ended, in the same thread."""
    seen: list[object] = []

    def look(how: str) -> None:
        seen.append(
            (
                context.message_id(),
                correlation_id.get(),
                traceparent.get(),
                structlog.contextvars.get_contextvars(),
            )
        )
        structlog.contextvars.bind_contextvars(left="behind")
        correlation_id.set("left behind")
        if how == "fails":
            raise ValueError

    actor = dramatiq.actor(queue_name=queue, broker=broker, max_retries=0)(look)
    wanted = (("fails", None), ("works", None), ("is too old", 1), ("works", None))
    messages = [
        actor.message_with_options(args=(how,), max_age=age, request_id=how, traceparent=TRACE)
        for how, age in wanted
    ]
    messages.append(actor.message("works"))
    for message in messages:
        broker.enqueue(message)
    await asyncio.sleep(0.01)
    async with working(broker, threads=1):
        await eventually(lambda: len(seen) == 4, "all but one")

    del messages[2]
    assert seen == [
        (
            message.message_id,
            message.options.get("request_id"),
            message.options.get("traceparent"),
            {"task": message.message_id, "actor": "look"},
        )
        for message in messages
    ]


async def test_tasks_share_what_is_open(
    broker: TaskBroker, queue: str, queue_settings: Settings
) -> None:
    """One database for all threads, and a context of its own for each of them."""
    both = threading.Barrier(2)
    seen: list[Any] = []

    def look() -> None:
        both.wait(LIMIT)
        seen.append(current_context())

    actor = dramatiq.actor(queue_name=queue, broker=broker)(look)
    ids = [broker.enqueue(actor.message()).message_id for _ in range(2)]
    async with working(broker, threads=2):
        await eventually(lambda: len(seen) == 2, "both of them")

    assert {each.message_id for each in seen} == set(ids)
    assert len({id(each.database) for each in seen}) == 1
    assert all(each.settings is queue_settings for each in seen)


async def test_an_actor_that_is_not_async_may_call_what_is(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    message = broker.enqueue(broker.get_actor("call").message(str(path)))
    async with working(broker):
        await eventually(lambda: words(path), "its end")

    assert words(path) == [message.message_id]
    async with committing_database.reads() as session:
        assert await session.scalar(select(func.count(Item.id))) == 1


async def test_outside_a_worker_there_is_no_loop_to_run_on() -> None:
    async def work() -> None: ...

    with pytest.raises(RuntimeError, match="for actors in a worker"):
        context.run(work())


async def test_an_actor_can_be_called_in_a_test_without_a_worker(
    committing_database: Database, settings: Settings
) -> None:
    with context.use_context(context.TaskContext(settings, committing_database)):
        assert context.message_id() is None
        assert context.task_settings() is settings
        async with context.transaction() as db:
            await context.report_progress(db, done=1)
            db.add(Item(name="Lamp"))

    async with committing_database.reads() as session:
        assert await session.scalar(select(func.count(Item.id))) == 1


@pytest.mark.usefixtures("relay")
async def test_what_a_task_enqueues_carries_the_request_on(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    seen: list[str | None] = []

    async def ask() -> None:
        async with context.transaction() as db:
            await enqueue(db, broker.get_actor("answer"))

    def answer() -> None:
        seen.append(correlation_id.get())

    for fn in (ask, answer):
        dramatiq.actor(queue_name=queue, broker=broker)(fn)
    with request("the request", TRACE):
        await send(committing_database, broker, "ask")
    async with working(broker):
        await eventually(lambda: seen, "the answer")

    assert seen == ["the request"]
