"""Catch-up: a new leader continues each job at the tick that the last leader has left."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from src.db.models.scheduler import SchedulerJob

# Where to look for the last missed tick: an outage may have missed millions.
_WINDOWS = [timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32)]


def catch_up(
    scheduler: AsyncIOScheduler, known: Sequence[SchedulerJob]
) -> Sequence[Mapping[str, Any]]:
    """Set the next tick of each job, and return the rows of `scheduler_job`."""
    by_id = {job.id: job for job in known}
    rows = []
    for job in scheduler.get_jobs():
        next_tick = job.next_run_time
        before = by_id.get(job.id)
        if before is not None and before.trigger == str(job.trigger):
            next_tick = _next_tick(job, before.next_tick)
            scheduler.modify_job(job.id, next_run_time=next_tick)
        rows.append({"id": job.id, "trigger": str(job.trigger), "next_tick": next_tick})
    return rows


def _next_tick(job: Job, unclaimed: datetime | None) -> datetime | None:
    """Return the first tick that is not claimed; of a job that coalesces, the last that is due."""
    if unclaimed is None:
        return None  # the job has ended: it had one tick, for example
    unclaimed = unclaimed.astimezone(UTC)
    if isinstance(job.trigger, IntervalTrigger):
        job.trigger.start_date = unclaimed  # otherwise intervals start when the process does
    now = datetime.now(UTC)
    for window in _WINDOWS if job.coalesce else ():
        if now - window <= unclaimed:
            break
        tick: datetime | None = job.trigger.get_next_fire_time(None, now - window)
        if tick is not None and tick <= now:
            return tick  # APScheduler goes on from here to the last one
    return unclaimed
