"""The process of `python cli.py scheduler`."""

import asyncio
import signal
from contextlib import AsyncExitStack

import structlog
from prometheus_client import start_http_server

from src import (
    # % if cookiecutter.cache_backend != "none"
    cache,
    # % endif
    db,
    # % if cookiecutter.__queue
    tasks,
    # % endif
)
from src.core.config import Settings
from src.schedulers.jobs import setup_jobs
from src.schedulers.scheduler import Setup, open_scheduler

log = structlog.get_logger(__name__)


async def run(
    settings: Settings,
    *,
    drain: float,
    metrics_port: int | None = None,
    setup: Setup = setup_jobs,
) -> None:
    """Schedule until SIGTERM or Ctrl-C."""
    stopping = asyncio.Event()
    _on_signal(stopping)
    if metrics_port is not None:
        start_http_server(metrics_port)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            db.open_database(settings.database_url, pool_size=settings.DATABASE_POOL_SIZE)
        )
        # % if cookiecutter.cache_backend != "none"
        await stack.enter_async_context(cache.open_cache(settings))
        # % endif
        # % if cookiecutter.__queue
        await stack.enter_async_context(tasks.open_relay(settings, tasks.broker))
        # % endif
        await stack.enter_async_context(
            open_scheduler(settings, database, setup=setup, drain=drain)
        )
        log.info("scheduler_started", env=settings.ENV, version=settings.VERSION)
        await stopping.wait()
    log.info("scheduler_stopped")


def _on_signal(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not `loop.add_signal_handler`, which Windows lacks.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopping.set))
