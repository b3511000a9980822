"""The scheduler's own job."""

import structlog

from src.repositories.retention import delete_expired
from src.schedulers.context import job_settings, transaction

log = structlog.get_logger(__name__)


async def prune_run_history() -> None:
    """Delete the runs that are older than `SCHEDULER_HISTORY_DAYS`."""
    count = await delete_expired(transaction, job_settings(), "SCHEDULER_HISTORY_DAYS")
    log.info("run_history_pruned", count=count)
