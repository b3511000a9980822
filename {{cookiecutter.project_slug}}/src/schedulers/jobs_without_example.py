"""Your jobs, and when they run. docs/scheduler.md says what a job can rely on.

A job is an `async def` without arguments; `transaction` comes from `src.schedulers.context`:

    async def send_digest() -> None:
        async with transaction() as db:
            await DigestService.send(db)

Register it in `setup_jobs`:

    scheduler.add_job(send_digest, trigger="cron", hour=7, id="send_digest", replace_existing=True)
"""

from apscheduler.schedulers.asyncio import AsyncIOScheduler


def setup_jobs(scheduler: AsyncIOScheduler) -> None:
    """Register each job, under an `id` that stays the same."""
