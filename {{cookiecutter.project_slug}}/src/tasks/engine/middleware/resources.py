"""What the tasks of a worker process share: one database, and what else there is to open."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar, cast

import structlog
from dramatiq import Broker, Middleware, Worker
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.middleware import MiddlewareError

from src import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    db,
)
from src.core.config import Settings
from src.core.logging import configure_logging
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.dramatiq_patches import debounce_sigterm, silence_result_warnings
from src.tasks.engine.maintenance import keep_house
from src.tasks.engine.relay import open_relay

log = structlog.get_logger(__name__)

T = TypeVar("T")

# For what is done around tasks: their states, pruning.
FURTHER_CONNECTIONS = 2

# Dramatiq tells of each step, and of retries.
_LEVELS = {
    "dramatiq": "WARNING",
    "dramatiq.middleware.retries": "INFO",
    # % if cookiecutter.__queue_rabbitmq
    "pika": "CRITICAL",  # of what Dramatiq tells too
    # % endif
}


class ResourcesMiddleware(Middleware):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.broker: TaskBroker
        self.database: db.Database
        # % if cookiecutter.cache_backend != "none"
        self.cache: cache.Cache
        # % endif
        self._stopping: Callable[[], None]
        self._life: asyncio.Task[None]

    def after_process_boot(self, broker: Broker) -> None:
        configure_logging(self.settings)
        for name, level in _LEVELS.items():
            logging.getLogger(name).setLevel(level)
        silence_result_warnings()
        debounce_sigterm()

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self.broker = cast(TaskBroker, broker)
        if unknown := set(worker.consumer_whitelist or ()) - broker.get_declared_queues():
            raise SystemExit(f"No task has the queue {', '.join(sorted(unknown))}.")
        try:
            self.run(self._begin(worker))
        except Exception as error:
            # Of any other Dramatiq would take no notice, and begin to work.
            raise MiddlewareError("What tasks need cannot be opened.") from error

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self.run(self._end())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Call from a thread; wait for the loop to do the work."""
        thread = get_event_loop_thread()
        if thread is None:
            work.close()
            raise RuntimeError("The worker has not booted.")
        return thread.run_coroutine(work)

    async def _begin(self, worker: Worker) -> None:
        stopping, ready = asyncio.Event(), asyncio.Event()
        self._stopping = stopping.set
        self._life = asyncio.create_task(self._live(worker, ready, stopping))
        opened = asyncio.create_task(ready.wait())
        await asyncio.wait([self._life, opened], return_when=asyncio.FIRST_COMPLETED)
        if self._life.done():
            opened.cancel()
            self._life.result()

    async def _live(self, worker: Worker, ready: asyncio.Event, stopping: asyncio.Event) -> None:
        settings = self.settings
        async with AsyncExitStack() as stack:
            wanted = worker.worker_threads + FURTHER_CONNECTIONS
            pool_size = max(settings.DATABASE_POOL_SIZE, wanted)
            self.database = await stack.enter_async_context(
                db.open_database(settings.database_url, pool_size=pool_size)
            )
            # % if cookiecutter.cache_backend != "none"
            self.cache = await stack.enter_async_context(cache.open_cache(settings))
            # % endif
            await stack.enter_async_context(open_relay(settings, self.broker))
            await stack.enter_async_context(keep_house(settings, self.broker, self.database))
            ready.set()
            log.info("worker_started", env=settings.ENV, version=settings.VERSION)
            await stopping.wait()
        log.info("worker_stopped")

    async def _end(self) -> None:
        # Tasks that are still running, beyond the time to stop, are cut off, and done again.
        self._stopping()
        await self._life
