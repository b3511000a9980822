"""Where a new leader goes on: each job at the tick that was next for the leader before."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from src.db.models.scheduler import SchedulerJob

# How far to look back for the last tick, step by step: the nearer it is, the fewer to go through.
_LOOKS_BACK = [timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32)]


def resume_jobs(
    scheduler: AsyncIOScheduler, known: Sequence[SchedulerJob]
) -> Sequence[Mapping[str, Any]]:
    """Set each job's next tick, and return what to write down of the jobs."""
    by_id = {job.id: job for job in known}
    rows = []
    for job in scheduler.get_jobs():
        before = by_id.get(job.id)
        next_tick = job.next_run_time
        if before is not None and before.trigger == str(job.trigger):
            next_tick = _resumed(job, before.next_tick)
            scheduler.modify_job(job.id, next_run_time=next_tick)
        rows.append({"id": job.id, "trigger": str(job.trigger), "next_tick": next_tick})
    return rows


def _resumed(job: Job, next_tick: datetime | None) -> datetime | None:
    if next_tick is None:
        return None  # it is over: it was to run once, say
    next_tick = next_tick.astimezone(UTC)
    if isinstance(job.trigger, IntervalTrigger):
        job.trigger.start_date = next_tick  # else each process would count from its own start
    return _last_due(job, next_tick, datetime.now(UTC)) if job.coalesce else next_tick


def _last_due(job: Job, next_tick: datetime, now: datetime) -> datetime:
    """Return the last tick up to now, from `next_tick` on: an outage may have missed millions."""
    for window in _LOOKS_BACK:
        start = now - window
        if start <= next_tick:
            break
        tick: datetime | None = job.trigger.get_next_fire_time(None, start)
        if tick is not None and next_tick < tick <= now:
            return tick  # APScheduler goes on from here, to the last
    return next_tick
