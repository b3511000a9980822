"""The resources that the tasks of a worker process share, for example the database."""

import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeVar, cast

import structlog
from dramatiq import Broker, Middleware, Worker
from dramatiq.middleware import MiddlewareError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from src import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    db,
)
from src.core.config import Settings
from src.core.shutdown import end_with_parent
from src.db.session import DatabaseUnavailableError
from src.tasks.context import run
from src.tasks.engine.actors import load_actors
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.dramatiq_patches import (
    configure_child_logging,
    debounce_sigterm,
    demote_interruptions,
    silence_result_warnings,
)
from src.tasks.engine.maintenance import open_maintenance
from src.tasks.engine.relay import open_relay

log = structlog.get_logger(__name__)

T = TypeVar("T")

# In addition to one for each thread: for the status of tasks, and for maintenance.
EXTRA_CONNECTIONS = 2

# At INFO, Dramatiq logs each step of each message.
_LEVELS = {
    "dramatiq": "WARNING",
    "dramatiq.middleware.retries": "INFO",
    # % if cookiecutter.__queue_rabbitmq
    "pika": "CRITICAL",  # Dramatiq logs its errors too
    # % endif
}


class NotRecordedError(MiddlewareError):
    """The database is unavailable, so the status of a task cannot be recorded."""


class ResourcesMiddleware(Middleware):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.broker: TaskBroker
        self.database: db.Database
        # % if cookiecutter.cache_backend != "none"
        self.cache: cache.Cache
        # % endif
        self._stack: AsyncExitStack

    def execute(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Run the work with a session, from a thread of the worker. Raises NotRecordedError."""

        async def call() -> T:
            async with self.database.reads() as session:
                return await work(session)

        try:
            return run(call())
        except (DatabaseUnavailableError, SQLAlchemyError) as error:
            raise NotRecordedError(str(error)) from error

    def after_process_boot(self, broker: Broker) -> None:
        configure_child_logging(self.settings)
        for name, level in _LEVELS.items():
            logging.getLogger(name).setLevel(level)
        try:
            load_actors()
        except Exception as error:
            # Dramatiq would ignore it and start a worker without these actors.
            log.exception("actors_not_loaded")
            raise SystemExit(1) from error
        silence_result_warnings()
        demote_interruptions()
        debounce_sigterm()
        end_with_parent(signal.SIGTERM)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self.broker = cast(TaskBroker, broker)
        if unknown := set(worker.consumer_whitelist or ()) - broker.get_declared_queues():
            names = ", ".join(sorted(unknown))
            raise SystemExit(f"No actor uses the queue {names}: check the option --queues.")
        try:
            run(self._open(worker))
        except Exception as error:
            # Dramatiq would ignore any other exception and start the worker.
            raise MiddlewareError("The resources of the worker could not be opened.") from error
        log.info("worker_started", env=self.settings.ENV, version=self.settings.VERSION)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        run(self._stack.aclose())
        log.info("worker_stopped")

    async def _open(self, worker: Worker) -> None:
        settings = self.settings
        needed = worker.worker_threads + EXTRA_CONNECTIONS
        pool_size = max(settings.DATABASE_POOL_SIZE, needed)
        async with AsyncExitStack() as stack:
            self.database = await stack.enter_async_context(
                db.open_database(settings.database_url, pool_size=pool_size)
            )
            # % if cookiecutter.cache_backend != "none"
            self.cache = await stack.enter_async_context(cache.open_cache(settings))
            # % endif
            await stack.enter_async_context(open_relay(settings, self.broker))
            await stack.enter_async_context(open_maintenance(settings, self.broker, self.database))
            self._stack = stack.pop_all()
