"""Workers in this process, and helpers that wait for their results."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from uuid import UUID

from dramatiq import Broker, Message, Middleware, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import TimeLimit
from sqlalchemy import URL, func, select

from src.core.config import Settings
from src.db.models.task import OutboxMessage, Task
from src.db.session import Database
from src.domain.task import TERMINAL_STATUSES
from src.tasks import enqueue as enqueue_in
from src.tasks.engine.brokers.base import DeadLetter, TaskBroker

Logs = list[dict[str, Any]]

LIMIT = 120.0  # seconds; only a test that fails waits this long


async def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition is true, and return its value. The condition may be async."""
    deadline = time.monotonic() + LIMIT
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not seen within {LIMIT} s: {what}"
        await asyncio.sleep(0.02)


@cache
def _time_limits() -> Any:
    """One thread for all tests, because Dramatiq cannot stop it."""
    manager = TimeLimit().manager
    manager.start()
    return manager


@asynccontextmanager
async def working(broker: TaskBroker, *, threads: int = 2) -> AsyncGenerator[Worker]:
    """Run a worker with all middleware in threads of this process, until the block ends."""
    for middleware in broker.middleware:
        if isinstance(middleware, TimeLimit):
            middleware.manager = _time_limits()
    worker = Worker(broker, worker_timeout=50, worker_threads=threads)
    await asyncio.to_thread(worker.start)
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop, int(LIMIT * 1000))


class Delays(Middleware):
    """Records the messages that are enqueued with a delay."""

    def __init__(self) -> None:
        self.messages: list[tuple[Message[Any], int]] = []

    def before_enqueue(self, _: Broker, message: Message[Any], delay: int | None) -> None:
        if delay is not None:
            self.messages.append((message, delay))


def queue_of(broker: TaskBroker) -> str:
    (queue,) = broker.get_declared_queues()
    return queue


def enqueue(broker: TaskBroker, actor: str, *args: Any, **options: Any) -> str:
    """Send a message without the outbox. Return the message id."""
    message = broker.get_actor(actor).message_with_options(args=args, **options)
    return broker.enqueue(message).message_id


async def send(database: Database, broker: TaskBroker, actor: str, *args: Any) -> str:
    """Enqueue a message in a transaction, so that a relay sends it."""
    async with database.transaction() as db:
        return await enqueue_in(db, broker.get_actor(actor), *args)


def events(logs: Logs, name: str) -> list[dict[str, Any]]:
    return [entry for entry in logs if entry["event"] == name]


async def get_task(database: Database, task_id: str) -> Task:
    async with database.reads() as session:
        task = await session.get(Task, UUID(task_id))
    assert task is not None
    return task


async def wait_for_end(database: Database, task_id: str) -> Task:
    """Wait until the task has succeeded or failed."""

    async def has_ended() -> Task | None:
        task = await get_task(database, task_id)
        return task if task.status in TERMINAL_STATUSES else None

    task: Task = await eventually(has_ended, "the end of the task")
    return task


async def wait_for_dead_letter(broker: TaskBroker) -> DeadLetter:
    """Wait until the queue has exactly one dead letter."""
    read = broker.dead_letters
    (letter,) = await eventually(
        lambda: asyncio.to_thread(read, queue_of(broker), limit=9), "a dead letter"
    )
    assert isinstance(letter, DeadLetter)
    return letter


async def receive(broker: TaskBroker, count: int = 1) -> list[MessageProxy]:
    """Receive this many messages, and check that the queue has no more."""
    return await asyncio.to_thread(_receive, broker, count)


def _receive(broker: TaskBroker, count: int) -> list[MessageProxy]:
    consumer = broker.consume(queue_of(broker), prefetch=1000, timeout=100)
    taken: list[MessageProxy] = []
    deadline = time.monotonic() + LIMIT
    while len(taken) < count and time.monotonic() < deadline:
        if message := next(consumer):
            consumer.ack(message)
            taken.append(message)
    extra = next(consumer)
    consumer.close()
    assert (len(taken), extra) == (count, None)
    return taken


async def count_unsent(database: Database) -> int:
    async with database.reads() as session:
        return await session.scalar(select(func.count(OutboxMessage.id))) or 0


def url_text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def variables_for(url: URL) -> dict[str, str]:
    return {
        "ENV": "test",
        # % if cookiecutter.cache_backend != "none"
        "CACHE_BACKEND_TYPE": "memory",
        # % endif
        "DATABASE_URL": url_text(url),
    }


def settings_for(url: URL, variables: dict[str, str]) -> Settings:
    return Settings.model_validate(variables_for(url) | variables)
