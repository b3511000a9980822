"""Elapsed time for each message, beside plain Dramatiq on the same broker.

Plain Dramatiq is set up as in its documentation: default middleware, `actor.send()`, no outbox, and
on RabbitMQ no quorum queues and no confirms. Everything runs in one process, in turns, with a worker
of eight threads whose tasks do nothing.
"""

import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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

from dev.rabbitmq import embedded_rabbitmq
from dev.server import ServerError
from dev.valkey import embedded_valkey
from src.core.config import Settings
from src.db import Database, open_database
from src.tasks import open_relay
from src.tasks.broker import create_broker
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.outbox import enqueue, enqueue_messages

MESSAGES, CLIENTS, THREADS = 4000, 32, 8
TURNS = min(ROUNDS, 3)  # each takes most of a minute
# How the service enqueues: messages per transaction, or 0 without the outbox.
TRANSACTION_SIZES = {
    "service send()": 0,
    "outbox, 100 per transaction": 100,
    "outbox, 1 per transaction": 1,
}


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


async def through_outbox(settings: Settings, bench: Bench, actor: Any, *, batch: int) -> float:
    """Enqueue in concurrent transactions of `batch`; return the seconds until all are sent."""
    broker = bench.broker
    assert isinstance(broker, TaskBroker)  # noqa: S101 - for mypy
    async with (
        open_database(settings.database_url, pool_size=settings.DATABASE_POOL_SIZE) as database,
        open_relay(settings, broker),
    ):
        numbers = iter(range(0, MESSAGES, batch))
        started = time.perf_counter()
        await asyncio.gather(*(client(database, actor, numbers, batch) for _ in range(CLIENTS)))
        while await asyncio.to_thread(waiting, broker) < MESSAGES:  # noqa: ASYNC110 - the broker has no event
            await asyncio.sleep(0.005)
        return time.perf_counter() - started


def waiting(broker: TaskBroker) -> int:
    return broker.queue_state("default").waiting


async def client(database: Database, actor: Any, numbers: Iterator[int], batch: int) -> None:
    for first in numbers:
        async with database.transaction() as db:
            if batch == 1:
                await enqueue(db, actor, first)
            else:
                messages = [actor.message(number) for number in range(first, first + batch)]
                await enqueue_messages(db, messages)


def measure(name: str, settings: Settings, bare: Callable[[], Broker], kind: str) -> None:
    enqueued: Costs = {}
    drained: Costs = {}

    def note(costs: Costs, label: str, seconds: float) -> None:
        costs.setdefault(label, []).append(seconds / MESSAGES * 1e6)

    for _ in range(TURNS):
        bench = Bench(bare(), "bare")
        note(enqueued, "plain send()", bench.send(bench.actors[kind]))
        note(drained, "plain", bench.drain())
        drains = []
        for label, batch in TRANSACTION_SIZES.items():
            bench = Bench(create_broker(settings), "default")
            dramatiq.set_broker(bench.broker)  # the outbox finds actors there
            actor = bench.actors[kind]
            if batch:
                seconds = asyncio.run(through_outbox(settings, bench, actor, batch=batch))
            else:
                seconds = bench.send(actor)
            note(enqueued, label, seconds)
            drains.append(bench.drain())
        note(drained, "service", statistics.median(drains))
    report(f"{name}: enqueue for a {kind} actor, per message", enqueued)
    report(f"{name}: drain, {kind} actor, {THREADS} threads, per message", drained)


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


def run(bare: type[Broker], name: str, settings: Settings, **options: Any) -> None:
    def make() -> Broker:
        broker = bare(**options)
        broker.add_middleware(AsyncIO())
        return broker

    for kind in ("sync", "async"):
        measure(name, settings, make, kind)


def main() -> None:
    with migrated() as database:
        with embedded_valkey() as url:
            settings = settings_of(database, REDIS_URL=url, DRAMATIQ_BROKER="redis")
            run(RedisBroker, "Valkey", settings, client=Redis.from_url(url))
        with rabbitmq() as url:
            if url is not None:
                settings = settings_of(database, RABBITMQ_URL=url, DRAMATIQ_BROKER="rabbitmq")
                run(RabbitmqBroker, "RabbitMQ", settings, url=url)


if __name__ == "__main__":
    main()
