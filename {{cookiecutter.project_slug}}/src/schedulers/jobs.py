"""The jobs and when they run. docs/scheduler.md tells what a job may rely on."""

from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from src.db.batches import in_batches
from src.schedulers.context import job_settings, transaction
from src.services.scheduler import SchedulerService
from src.services.stale_items import StaleItemService

log = structlog.get_logger(__name__)

BATCH = 500  # rows in a transaction: short ones hold up nobody


def setup_jobs(scheduler: AsyncIOScheduler) -> None:
    scheduler.add_job(
        archive_stale_items,
        trigger="interval",
        hours=1,
        id="archive_stale_items",
        replace_existing=True,
        # The very first tick; later ones go by the table, whoever leads.
        next_run_time=datetime.now(UTC),
        misfire_grace_time=None,  # late is better than never
    )
    scheduler.add_job(
        prune_run_history,
        trigger="cron",
        hour=3,
        id="prune_run_history",
        replace_existing=True,
        misfire_grace_time=None,
    )


async def archive_stale_items() -> None:
    """Archive the items that nobody has changed for `ITEMS_STALE_AFTER_DAYS`."""
    before = datetime.now(UTC) - timedelta(days=job_settings().ITEMS_STALE_AFTER_DAYS)
    count = await in_batches(
        transaction, partial(StaleItemService.archive, before=before), limit=BATCH
    )
    log.info("stale_items_archived", count=count)


async def prune_run_history() -> None:
    """Forget the runs that are older than `SCHEDULER_HISTORY_DAYS`."""
    before = datetime.now(UTC) - timedelta(days=job_settings().SCHEDULER_HISTORY_DAYS)
    count = await in_batches(
        transaction, partial(SchedulerService.prune_runs, before=before), limit=BATCH
    )
    log.info("run_history_pruned", count=count)
