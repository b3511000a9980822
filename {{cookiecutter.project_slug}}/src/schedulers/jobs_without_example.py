"""Your scheduled jobs. docs/scheduler.md shows how to add one."""

from apscheduler.schedulers.asyncio import AsyncIOScheduler


def setup_jobs(scheduler: AsyncIOScheduler) -> None:
    """Register each job, with an `id` that never changes."""
