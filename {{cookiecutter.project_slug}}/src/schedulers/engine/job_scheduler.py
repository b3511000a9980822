"""An APScheduler that rejects jobs that would not run as they are written."""

import inspect
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger
from apscheduler.triggers.cron import CronTrigger

MAX_ID_LENGTH = 200
_SIGNATURE = inspect.signature(AsyncIOScheduler.add_job)
_CRONTAB_FIELDS = ("minute", "hour", "day", "month", "day_of_week")


class InvalidJobError(ValueError):
    """A job in `setup_jobs` cannot run as it is written."""


class JobScheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
    """Checks jobs in `add_job`, so that the traceback shows the line to change."""

    def add_job(self, *args: Any, **options: Any) -> Job:
        """Raises InvalidJobError."""
        given = _SIGNATURE.bind(self, *args, **options).arguments
        name = given.get("id") or getattr(given["func"], "__name__", given["func"])
        is_known = any(job.id == given.get("id") for job in self.get_jobs())
        for text in (given.get("trigger"), given.get("args")):
            if isinstance(text, str) and " " in text:
                hint = f'pass a cron string as `trigger=CronTrigger.from_crontab("{text}")`'
                raise InvalidJobError(f"The job {name} is invalid: {hint}.")
        try:
            job = super().add_job(*args, **options)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InvalidJobError(f"The job {name} is invalid: {error}") from error
        for option, default in self._job_defaults.items():
            if not hasattr(job, option):
                setattr(job, option, default)
        if is_known:
            raise InvalidJobError(f"Two jobs have the id {name}: give one of them another id.")
        for problem in _problems(job, given):
            raise InvalidJobError(f"The job {name} {problem}.")
        return job

    def start(self, *_: Any, **__: Any) -> NoReturn:
        raise InvalidJobError("setup_jobs must not start the scheduler: the leader runs the jobs.")

    def add_listener(self, *_: Any, **__: Any) -> NoReturn:
        raise InvalidJobError(
            "Listeners are not called for jobs: handle errors in the job, or use the metrics."
        )


def _problems(job: Job, given: Mapping[str, Any]) -> Iterator[str]:
    if not given.get("id") or len(job.id) > MAX_ID_LENGTH or not job.id.isprintable():
        yield f"needs an `id` of 1 to {MAX_ID_LENGTH} printable characters: pass one to add_job()"
    if not inspect.iscoroutinefunction(job.func):
        yield "must be an `async def` function"
    if {given.get("jobstore", "default"), given.get("executor", "default")} != {"default"}:
        yield "cannot have a `jobstore` or an `executor`: leave them out"
    if job.max_instances != 1:
        yield "never overlaps itself: leave out `max_instances`"
    trigger, arguments = given.get("trigger"), given.get("trigger_args", {})
    if trigger in {None, "date"} and arguments.get("run_date") is None:
        yield 'needs a `run_date`, or the trigger "interval" or "cron"'
    for each in (job.trigger, *getattr(job.trigger, "triggers", ())):  # an OrTrigger has several
        yield from _trigger_problems(each)


def _trigger_problems(trigger: BaseTrigger) -> Iterator[str]:
    jitter = getattr(trigger, "jitter", None) or 0
    if not isinstance(jitter, int | float) or jitter < 0:
        yield "needs a `jitter` of 0 or more seconds"
    if isinstance(trigger, AndTrigger):
        yield "cannot have an AndTrigger, which may search for a time forever: use one cron trigger"
    if isinstance(trigger, CronTrigger):
        yield from _cron_problems(trigger)


def _cron_problems(trigger: CronTrigger) -> Iterator[str]:
    fields = {field.name: field for field in trigger.fields}
    if all(field.is_default for field in trigger.fields):
        yield "needs a time, for example `hour=7`: without one it runs every second"
    weekday, day = fields["day_of_week"], fields["day"]
    is_crontab = not any(fields[name].is_default for name in _CRONTAB_FIELDS)
    if is_crontab and "*" not in {str(weekday), str(day)}:
        yield (
            f'has the day "{day}" and the weekday "{weekday}", of which cron needs one to match'
            " and APScheduler both: add two jobs, or one with keywords instead of a cron string"
        )
    if trigger.get_next_fire_time(None, datetime(1970, 1, 1, tzinfo=UTC)) is None:
        yield "never runs: no date matches its trigger"
