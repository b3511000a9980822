"""Workers, in this process and in others, and ways to wait for what they do."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from dramatiq import Broker, Message, Middleware, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import TimeLimit
from sqlalchemy import URL, func, select

from src.core.config import ROOT, Settings
from src.db.models.task import OutboxMessage, Task
from src.db.session import Database
from src.domain.task import TaskStatus
from src.tasks import enqueue as enqueue_in
from src.tasks.engine.brokers.base import TaskBroker
from tests.leash import Leash

Logs = list[dict[str, Any]]

LIMIT = 60.0  # seconds; only a test that fails waits so long


async def eventually(is_so: Callable[[], Any], what: str) -> Any:
    """Wait until the answer, or what is awaited of it, is true; return it."""
    deadline = time.monotonic() + LIMIT
    while True:
        answer = is_so()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not seen within {LIMIT} s: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def working(broker: TaskBroker, *, threads: int = 2) -> AsyncGenerator[Worker]:
    """Work in threads of this process, with all that surrounds a task, until the block ends."""
    for middleware in broker.middleware:
        if isinstance(middleware, TimeLimit):  # all else of a process's boot is for logs
            middleware.after_process_boot(broker)
    worker = Worker(broker, worker_timeout=50, worker_threads=threads)
    await asyncio.to_thread(worker.start)
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop, int(LIMIT * 1000))


class Delays(Middleware):
    """Notes for how long messages are put off."""

    def __init__(self) -> None:
        self.noted: list[int] = []

    def before_enqueue(self, _: Broker, __: Message[Any], delay: int | None) -> None:
        if delay is not None:
            self.noted.append(delay)


class WorkerProcess:
    """`python -m dramatiq`, or a command of `cli.py`, with a log to look at."""

    def __init__(self, arguments: list[str], settings: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | {"LOG_LEVEL": "INFO"} | settings,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._leash = Leash(self.process.pid)

    @property
    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")

    async def until_told(self, words: str) -> None:
        def is_told() -> bool:
            assert self.process.poll() is None or words in self.told, self.told
            return words in self.told

        await eventually(is_told, words)

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, LIMIT)

    def kill(self) -> None:
        """Kill all its processes at once, as a machine that loses its power does."""
        self._leash.pull()
        self.process.wait()


def queue_of(broker: TaskBroker) -> str:
    (queue,) = broker.get_declared_queues()
    return queue


def enqueue(broker: TaskBroker, actor: str, *args: Any, **options: Any) -> None:
    """Send it past the outbox."""
    broker.enqueue(broker.get_actor(actor).message_with_options(args=args, **options))


async def send(database: Database, broker: TaskBroker, actor: str, *args: Any) -> str:
    """Enqueue in a transaction of its own; for the relay to send."""
    async with database.transaction() as db:
        return await enqueue_in(db, broker.get_actor(actor), *args)


def events(logs: Logs, name: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == name]


async def state_of(database: Database, task_id: str) -> Task:
    async with database.reads() as session:
        task = await session.get(Task, UUID(task_id))
    assert task is not None
    return task


async def over(database: Database, task_id: str) -> Task:
    """Wait until the task is done or has failed."""

    async def is_over() -> Task | None:
        task = await state_of(database, task_id)
        return task if task.status in {TaskStatus.SUCCEEDED, TaskStatus.FAILED} else None

    task: Task = await eventually(is_over, "the end of the task")
    return task


async def received(broker: TaskBroker, queue: str, count: int = 1) -> list[MessageProxy]:
    """Take so many messages from the queue, and see to it that there are no more."""
    return await asyncio.to_thread(_receive, broker, queue, count)


def _receive(broker: TaskBroker, queue: str, count: int) -> list[MessageProxy]:
    consumer = broker.consume(queue, prefetch=1000, timeout=100)
    taken: list[MessageProxy] = []
    deadline = time.monotonic() + LIMIT
    while len(taken) < count and time.monotonic() < deadline:
        if message := next(consumer):
            consumer.ack(message)
            taken.append(message)
    extra = next(consumer)
    consumer.close()
    assert extra is None
    assert len(taken) == count
    return taken


async def unsent(database: Database) -> int:
    async with database.reads() as session:
        return await session.scalar(select(func.count(OutboxMessage.id))) or 0


def text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def settings_for(url: URL, variables: dict[str, str]) -> Settings:
    named = {
        "DATABASE_URL": text_of(url),
        # % if cookiecutter.cache_backend != "none"
        "CACHE_BACKEND_TYPE": "memory",
        # % endif
        **variables,
    }
    return Settings.model_validate({"ENV": "test", **named})
