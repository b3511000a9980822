"""The jobs and when they run. docs/scheduler.md tells what a job may rely on."""

from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from src.db.batches import in_batches
from src.schedulers.context import job_settings, job_tick, make_item_report, transaction
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
    scheduler.add_job(
        daily_item_report,
        trigger="cron",
        hour=0,
        minute=10,
        id="daily_item_report",
        replace_existing=True,
        misfire_grace_time=None,
        coalesce=False,  # each day has a report of its own
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


async def daily_item_report() -> None:
    """Report on the day before the one on which this was due."""
    day = (job_tick() or datetime.now(UTC)).astimezone(UTC).date() - timedelta(days=1)
    async with transaction() as db:
        await make_item_report(db, day)
