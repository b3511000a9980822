"""Configures APScheduler and starts the scheduler: docs/scheduler.md."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, tzinfo
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from src.core.config import Settings
from src.db import Database, open_database
from src.repositories.retention import delete_expired
from src.schedulers.context import JobContext, job_settings, transaction
from src.schedulers.engine.job_scheduler import InvalidJobError, JobScheduler
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
PRUNE = "prune_run_history"


def build_scheduler(setup: Setup, *, timezone: tzinfo = UTC) -> AsyncIOScheduler:
    """Return an APScheduler with the jobs of `setup` and the job `prune_run_history`.

    Raises InvalidJobError for a job that cannot run.
    """
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # INFO logs each job
    scheduler = JobScheduler(job_defaults=DEFAULTS, timezone=timezone)
    if inspect.iscoroutinefunction(setup):
        raise InvalidJobError("setup_jobs must be a `def` function: it only registers jobs.")
    setup(scheduler)
    if scheduler.get_job(PRUNE) is None:
        scheduler.add_job(
            prune_run_history, trigger="cron", hour=3, id=PRUNE, misfire_grace_time=None
        )
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
    build = partial(build_scheduler, setup, timezone=settings.SCHEDULER_TIMEZONE)
    build()  # report an invalid job now, not when this process becomes the leader
    async with open_database(settings.database_url, pool_size=CONNECTIONS) as separate:
        context = JobContext(settings, database)
        scheduler = Scheduler(Store(separate), context, build, drain)
        running = asyncio.create_task(scheduler.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])
