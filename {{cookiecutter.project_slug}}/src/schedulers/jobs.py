"""Your scheduled jobs. docs/scheduler.md shows how to add one."""

from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from src.db.batches import in_batches
from src.schedulers.context import job_settings, transaction
from src.services.stale_items import StaleItemService

log = structlog.get_logger(__name__)

BATCH = 500  # rows per transaction; short transactions do not block others for long


def setup_jobs(scheduler: AsyncIOScheduler) -> None:
    """Register each job, with an `id` that never changes."""
    scheduler.add_job(
        archive_stale_items,
        trigger="interval",
        hours=1,
        id="archive_stale_items",
        replace_existing=True,
        next_run_time=datetime.now(UTC),  # the first tick ever; the next ones are in the database
        misfire_grace_time=None,  # run it even if it is late
    )


async def archive_stale_items() -> None:
    """Archive the items that have not changed for `ITEMS_STALE_AFTER_DAYS`."""
    before = datetime.now(UTC) - timedelta(days=job_settings().ITEMS_STALE_AFTER_DAYS)
    count = await in_batches(
        transaction, partial(StaleItemService.archive, before=before), limit=BATCH
    )
    log.info("stale_items_archived", count=count)
