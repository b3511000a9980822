"""Elapsed time for each message, beside plain Dramatiq on the same broker.

Plain Dramatiq is set up as in its documentation: default middleware, `actor.send()`, no outbox, and
on RabbitMQ no quorum queues and no confirms. *A row and its message* is what an endpoint does: a
transaction that inserts an item, and then `send()`, or `enqueue()` within it. Without the row, a
separate transaction for each message is compared with no transaction at all.

On RabbitMQ, the service uses quorum queues, which survive the loss of a
server; plain Dramatiq is measured with them too. Everything runs in one process, in turns, with a
worker of eight threads whose tasks do nothing.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import dramatiq
from dramatiq import Broker, Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from harness import migrated
from redis import Redis
from report import ROUNDS, Costs, report
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncSession

from dev.rabbitmq import embedded_rabbitmq
from dev.server import ServerError
from dev.valkey import embedded_valkey
from src.core.config import Settings
from src.db import Database, open_database
from src.db.models.item import Item
from src.tasks import open_relay
from src.tasks.broker import create_broker
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.outbox import enqueue, enqueue_messages

MESSAGES, CLIENTS, THREADS = 2000, 32, 8
TURNS = min(ROUNDS, 3)  # each takes most of a minute
Work = Callable[[Database, Iterator[int]], Awaitable[None]]


class Bench:
    """One broker with two actors that do nothing, one of them asynchronous."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self.broker = broker
        self.done = threading.Semaphore(0)
        declare = dramatiq.actor(broker=broker, queue_name=queue, actor_name="sync")
        declare_async = dramatiq.actor(broker=broker, queue_name=queue, actor_name="async")
        self.actors = {"sync": declare(self.work), "async": declare_async(self.work_on_loop)}
        broker.emit_after("process_boot")

    def work(self, number: int) -> None:  # noqa: ARG002 - an argument is part of the cost
        self.done.release()

    async def work_on_loop(self, number: int) -> None:  # noqa: ARG002 - as above
        self.done.release()

    def send(self, actor: Any) -> float:
        started = time.perf_counter()
        for number in range(MESSAGES):
            actor.send(number)
        return time.perf_counter() - started

    def drain(self) -> float:
        """Return the seconds from the end of the first task to the end of the last one."""
        worker = Worker(self.broker, worker_threads=THREADS, worker_timeout=100)
        worker.start()
        self.done.acquire()
        started = time.perf_counter()
        for _ in range(MESSAGES - 1):
            self.done.acquire()
        elapsed = time.perf_counter() - started
        worker.stop()
        return elapsed


async def through_outbox(settings: Settings, bench: Bench, work: Work) -> float:
    """Enqueue in concurrent transactions; return the seconds until all messages are sent."""
    broker = bench.broker
    assert isinstance(broker, TaskBroker)  # noqa: S101 - for mypy
    async with open_relay(settings, broker):
        started = time.perf_counter()
        await concurrently(settings, work)
        while await asyncio.to_thread(waiting, broker) < MESSAGES:  # noqa: ASYNC110 - the broker has no event
            await asyncio.sleep(0.005)
        return time.perf_counter() - started


async def concurrently(settings: Settings, work: Work) -> float:
    size = settings.DATABASE_POOL_SIZE
    numbers = iter(range(MESSAGES))
    async with open_database(settings.database_url, pool_size=size) as database:
        started = time.perf_counter()
        await asyncio.gather(*(work(database, numbers) for _ in range(CLIENTS)))
        return time.perf_counter() - started


def waiting(broker: TaskBroker) -> int:
    return broker.queue_state("default").waiting


def enqueue_in(batch: int, actor: Any) -> Work:
    async def work(database: Database, numbers: Iterator[int]) -> None:
        while chunk := [*islice(numbers, batch)]:
            async with database.transaction() as db:
                if batch == 1:
                    await enqueue(db, actor, chunk[0])
                else:
                    await enqueue_messages(db, [actor.message(number) for number in chunk])

    return work


def save_and_send(actor: Any) -> Work:
    async def work(database: Database, numbers: Iterator[int]) -> None:
        for number in numbers:
            async with database.transaction() as db:
                await save(db)
            actor.send(number)

    return work


def save_and_enqueue(actor: Any) -> Work:
    async def work(database: Database, numbers: Iterator[int]) -> None:
        for number in numbers:
            async with database.transaction() as db:
                await save(db)
                await enqueue(db, actor, number)

    return work


async def save(db: AsyncSession) -> None:
    db.add(Item(name="Lamp"))
    await db.flush()


def service(settings: Settings) -> Bench:
    bench = Bench(create_broker(settings), "default")
    dramatiq.set_broker(bench.broker)  # the outbox finds actors there
    return bench


def measure_enqueueing(name: str, settings: Settings, bare: Callable[[], Broker]) -> None:
    alone: Costs = {}
    with_row: Costs = {}

    def note(costs: Costs, label: str, seconds: float) -> None:
        costs.setdefault(label, []).append(seconds / MESSAGES * 1e6)

    for _ in range(TURNS):
        bench = Bench(bare(), "bare")
        actor = bench.actors["sync"]
        note(alone, "plain send()", bench.send(actor))
        note(
            with_row,
            "commit, plain send()",
            asyncio.run(concurrently(settings, save_and_send(actor))),
        )
        bench.broker.flush_all()
        bench = service(settings)
        actor = bench.actors["sync"]
        note(alone, "service send()", bench.send(actor))
        bench.broker.flush_all()
        for batch in (100, 1):
            seconds = asyncio.run(through_outbox(settings, bench, enqueue_in(batch, actor)))
            note(alone, f"outbox, {batch} per transaction", seconds)
            bench.broker.flush_all()
        seconds = asyncio.run(through_outbox(settings, bench, save_and_enqueue(actor)))
        note(with_row, "enqueue(), commit", seconds)
        bench.broker.flush_all()
    report(f"{name}: a message", alone)
    report(f"{name}: a row and its message", with_row)


def measure_drains(name: str, benches: Mapping[str, Callable[[], Bench]], kind: str) -> None:
    costs: Costs = {label: [] for label in benches}
    for _ in range(TURNS):
        for label, make in benches.items():
            bench = make()
            bench.send(bench.actors[kind])
            costs[label].append(bench.drain() / MESSAGES * 1e6)
    report(f"{name}: drain, {kind} actor, {THREADS} threads", costs)


@contextmanager
def rabbitmq() -> Iterator[str | None]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(embedded_rabbitmq())
        except ServerError as error:
            sys.stdout.write(f"\n{error}\n")
            yield None


def settings_of(url: URL, **values: Any) -> Settings:
    database_url: Any = url.render_as_string(hide_password=False)
    return Settings(ENV="test", LOG_LEVEL="ERROR", DATABASE_URL=database_url, **values)


class QuorumBroker(RabbitmqBroker):
    """Plain Dramatiq on quorum queues."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


def run(name: str, settings: Settings, kinds: Mapping[str, type[Broker]], **options: Any) -> None:
    def make(kind: type[Broker]) -> Broker:
        broker = kind(**options)
        broker.add_middleware(AsyncIO())
        return broker

    benches = {
        label: partial(lambda kind: Bench(make(kind), kind.__name__), kind)
        for label, kind in kinds.items()
    }
    measure_enqueueing(name, settings, partial(make, next(iter(kinds.values()))))
    for actor in ("sync", "async"):
        measure_drains(name, {**benches, "service": partial(service, settings)}, actor)


def main() -> None:
    with migrated() as database:
        with embedded_valkey() as url:
            settings = settings_of(database, REDIS_URL=url, DRAMATIQ_BROKER="redis")
            run("Valkey", settings, {"plain": RedisBroker}, client=Redis.from_url(url))
        with rabbitmq() as url:
            if url is not None:
                settings = settings_of(database, RABBITMQ_URL=url, DRAMATIQ_BROKER="rabbitmq")
                kinds = {"plain": RabbitmqBroker, "plain, quorum queues": QuorumBroker}
                run("RabbitMQ", settings, kinds, url=url)


if __name__ == "__main__":
    main()
