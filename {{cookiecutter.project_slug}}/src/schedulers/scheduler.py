"""Configures APScheduler and starts the scheduler: docs/scheduler.md."""

import asyncio
import inspect
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from src.core.config import Settings
from src.db import Database, open_database
from src.repositories.retention import delete_expired
from src.schedulers.context import JobContext, job_settings, transaction
from src.schedulers.engine.executor import RecordingExecutor
from src.schedulers.engine.leadership import Scheduler
from src.schedulers.engine.store import Store
from src.schedulers.jobs import setup_jobs

log = structlog.get_logger(__name__)

Setup = Callable[[AsyncIOScheduler], None]

DEFAULTS = {"coalesce": True, "misfire_grace_time": 60}
# Time for running jobs to finish in an API process. Requests get 25 seconds before that, and
# orchestrators usually wait 30 seconds in all.
DRAIN_SECONDS = 4.0
# A separate pool: requests that use all other connections cannot delay a renewal of the lease.
CONNECTIONS = 2
_GENERATED_ID = re.compile(r"[0-9a-f]{32}")


def build_scheduler(setup: Setup, executor: RecordingExecutor | None = None) -> AsyncIOScheduler:
    """Return an APScheduler with the jobs of `setup` and the job `prune_run_history`.

    Raises TypeError for a job that is not `async def`, and ValueError for a job without an `id`.
    """
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # INFO logs each tick
    executors = {} if executor is None else {"default": executor}
    scheduler = AsyncIOScheduler(executors=executors, job_defaults=DEFAULTS, timezone=UTC)
    scheduler.add_job(
        prune_run_history, trigger="cron", hour=3, id="prune_run_history", misfire_grace_time=None
    )
    setup(scheduler)
    for job in scheduler.get_jobs():
        if not inspect.iscoroutinefunction(job.func):
            raise TypeError(f"The job {job.id} must be an `async def` function.")
        if _GENERATED_ID.fullmatch(job.id):
            raise ValueError(f"The job {job.name} needs an `id`: pass one to add_job().")
    return scheduler


async def prune_run_history() -> None:
    """Delete the runs that are older than `SCHEDULER_HISTORY_DAYS`."""
    count = await delete_expired(transaction, job_settings(), "SCHEDULER_HISTORY_DAYS")
    log.info("run_history_pruned", count=count)


@asynccontextmanager
async def open_scheduler(
    settings: Settings,
    database: Database,
    *,
    setup: Setup = setup_jobs,
    drain: float = DRAIN_SECONDS,
) -> AsyncGenerator[None]:
    """Run the scheduler in the background until the block ends."""
    build_scheduler(setup)  # report an invalid job now, not when this process becomes the leader
    async with open_database(settings.database_url, pool_size=CONNECTIONS) as separate:
        context = JobContext(settings, database)
        scheduler = Scheduler(Store(separate), context, partial(build_scheduler, setup), drain)
        running = asyncio.create_task(scheduler.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])
