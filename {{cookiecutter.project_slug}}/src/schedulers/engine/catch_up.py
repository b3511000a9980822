"""Catch-up: a new leader continues each job at the first tick that no leader has claimed."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from src.db.models.scheduler import SchedulerJob

# Periods before now in which to search for the last missed tick. After a long outage there may be
# millions of missed ticks, and APScheduler would step through each.
_WINDOWS = [timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32)]


def catch_up(
    scheduler: AsyncIOScheduler, known: Sequence[SchedulerJob]
) -> Sequence[Mapping[str, Any]]:
    """Set the next tick of each job, and return the rows of `scheduler_job`."""
    by_id = {job.id: job for job in known}
    rows = []
    for job in scheduler.get_jobs():
        next_tick = job.next_run_time
        trigger = _describe(job.trigger)
        stored = by_id.get(job.id)
        if stored is not None and stored.trigger == trigger and not _is_paused(job):
            next_tick = _next_tick(job, stored.next_tick)
            scheduler.modify_job(job.id, next_run_time=next_tick)
        rows.append({"id": job.id, "trigger": trigger, "next_tick": next_tick})
    return rows


def _describe(trigger: BaseTrigger) -> str:
    zone = str(trigger.timezone) if isinstance(trigger, CronTrigger) else "UTC"
    return str(trigger) if zone == "UTC" else f"{trigger} {zone}"


def _is_paused(job: Job) -> bool:
    """Return whether it has `next_run_time=None` though its trigger has not ended."""
    return job.next_run_time is None and bool(
        job.trigger.get_next_fire_time(None, datetime.now(UTC))
    )


def _next_tick(job: Job, unclaimed: datetime | None) -> datetime | None:
    """Return the first unclaimed tick, or a later one that is due if the job coalesces."""
    if unclaimed is None:
        # The job was paused, or it has ended: a job with the trigger "date" after its run.
        now = datetime.now(UTC)
        following: datetime | None = job.trigger.get_next_fire_time(None, now)
        return following if following is not None and following > now else None
    unclaimed = unclaimed.astimezone(UTC)
    if isinstance(job.trigger, IntervalTrigger):
        job.trigger.start_date = (
            unclaimed  # otherwise intervals count from the start of the process
        )
    now = datetime.now(UTC)
    for window in _WINDOWS if job.coalesce else ():
        if now - window <= unclaimed:
            break
        tick: datetime | None = job.trigger.get_next_fire_time(None, now - window)
        if tick is not None and tick <= now:
            return tick  # APScheduler steps from here to the last one that is due
    return unclaimed
