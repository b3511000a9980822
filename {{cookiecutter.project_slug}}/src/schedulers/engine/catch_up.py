"""Catch-up: a new leader continues each job at the first tick that no leader has claimed."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.job import Job
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from src.db.models.scheduler import SchedulerJob
from src.schedulers.engine.apscheduler_patches import NO_START

# Periods before now in which to search for the last missed tick. After a long outage there may be
# millions of missed ticks, and `due_ticks` would step through each.
_WINDOWS = [timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32)]


def catch_up(
    jobs: Sequence[Job], known: Sequence[SchedulerJob], now: datetime
) -> Sequence[Mapping[str, Any]]:
    """Set the next tick of each job, and return the rows of `scheduler_job`."""
    by_id = {job.id: job for job in known}
    rows = []
    for job in jobs:
        trigger = _describe(job.trigger)
        stored = by_id.get(job.id)
        is_known = stored is not None and stored.trigger == trigger
        job.next_run_time = _next_tick(job, stored if is_known else None, now)
        rows.append({"id": job.id, "trigger": trigger, "next_tick": job.next_run_time})
    return rows


def due_ticks(job: Job, now: datetime) -> Sequence[datetime]:
    """Return the ticks that are due, or the last one if the job coalesces. Set the next tick."""
    ticks = []
    while job.next_run_time is not None and job.next_run_time <= now:
        ticks.append(job.next_run_time)
        job.next_run_time = job.trigger.get_next_fire_time(job.next_run_time, now)
    return ticks[-1:] if job.coalesce else ticks


def _describe(trigger: BaseTrigger) -> str:
    zone = str(trigger.timezone) if isinstance(trigger, CronTrigger) else "UTC"
    return str(trigger) if zone == "UTC" else f"{trigger} {zone}"


def _next_tick(job: Job, stored: SchedulerJob | None, now: datetime) -> datetime | None:
    """Return the first unclaimed tick, or a later one that is due if the job coalesces."""
    trigger = job.trigger
    given: datetime | None = getattr(job, "next_run_time", now)  # missing if it was not given
    if given is None:
        return None  # the job is paused
    if isinstance(trigger, IntervalTrigger) and trigger.start_date == NO_START:
        trigger.start_date = now + trigger.interval
    following: datetime | None = trigger.get_next_fire_time(None, now)
    if stored is None:
        return given if hasattr(job, "next_run_time") else following
    if stored.next_tick is None:
        # The job was paused, or it has ended: a job with the trigger "date" after its run.
        return following if following is not None and following > now else None
    tick = stored.next_tick.astimezone(UTC)
    if tick > now and following is not None and following > now:
        # An earlier tick follows if PostgreSQL's clock was set back.
        interval = getattr(trigger, "interval", timedelta())
        return min(tick, max(following, given, now + interval))
    if isinstance(trigger, IntervalTrigger):
        trigger.start_date = tick  # otherwise intervals count from the start of the process
    for window in _WINDOWS if job.coalesce else ():
        if now - window <= tick:
            break
        last: datetime | None = trigger.get_next_fire_time(None, now - window)
        if last is not None and last <= now:
            return last  # `due_ticks` steps from here to the last one that is due
    return tick
