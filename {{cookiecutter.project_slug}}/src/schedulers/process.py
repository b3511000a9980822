"""The scheduler as a process of its own: `python cli.py scheduler`."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

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
from src.services.scheduler import Overview, SchedulerService

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


async def overview(settings: Settings, *, runs: int) -> Overview:
    """Raises DatabaseUnavailableError."""
    async with (
        db.open_database(settings.database_url, pool_size=1) as database,
        database.reads() as session,
    ):
        return await SchedulerService.overview(session, runs=runs)


def lines_of(overview: Overview) -> Iterator[str]:
    """Lay out for a terminal."""
    leader = overview.leader
    yield f"Leader: {leader.holder}, since {_time(leader.acquired_at)}" if leader else "No leader."
    for job in overview.jobs:
        yield ""
        yield f"{job.id}  {job.trigger}  next: {_time(job.next_tick)}"
        for run in job.runs:
            ended = _time(run.finished_at)
            error = f"  {run.error}" if run.error else ""
            yield f"  {_time(run.tick)}  {run.outcome:9}  finished: {ended}{error}"


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else "-"
