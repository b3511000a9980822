"""Fixes for APScheduler 3.11. The comment on each one says when it can be removed."""

import random
import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from apscheduler.triggers import calendarinterval, cron, date, interval
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.cron.expressions import (
    LastDayOfMonthExpression,
    MonthRangeExpression,
    WeekdayPositionExpression,
    WeekdayRangeExpression,
)
from apscheduler.triggers.cron.fields import DayOfWeekField
from apscheduler.triggers.interval import IntervalTrigger
from apscheduler.util import datetime_utc_add

from src.core.config import get_settings
from src.schedulers.engine.job_scheduler import InvalidJobError

_next_fire_time = CronTrigger.get_next_fire_time
_compile_weekday = DayOfWeekField.compile_expression
_read_crontab = CronTrigger.from_crontab
_create_interval = IntervalTrigger.__init__


def apply_patches() -> None:
    # Remove when APScheduler rejects "mon#2" and "mon-fri/2". It reads "mon" and "mon-fri".
    for expression in (
        LastDayOfMonthExpression,
        MonthRangeExpression,
        WeekdayPositionExpression,
        WeekdayRangeExpression,
    ):
        pattern = expression.value_re.pattern.rstrip("$")
        expression.value_re = re.compile(f"{pattern}$", re.IGNORECASE)
    # Remove when a trigger object takes the scheduler's time zone. It takes the machine's.
    for module in (calendarinterval, cron, date, interval):
        module.get_localzone = _default_timezone
    DayOfWeekField.compile_expression = _compile_weekday_name
    CronTrigger.get_next_fire_time = _without_repeated_hour
    CronTrigger.from_crontab = staticmethod(_from_crontab)
    IntervalTrigger.__init__ = _positive_interval
    BaseTrigger._apply_jitter = _apply_jitter  # noqa: SLF001 - no public method


def _default_timezone() -> tzinfo:
    return get_settings().SCHEDULER_TIMEZONE


# Remove when weekdays have the numbers of cron, as in APScheduler 4.
def _compile_weekday_name(field: DayOfWeekField, expression: str) -> None:
    if re.match(r"\d|\*/", expression):
        raise InvalidJobError(
            f'The weekday "{expression}" is ambiguous, because cron counts from Sunday and'
            ' APScheduler from Monday: write names, for example "mon" or "mon-fri".'
        )
    _compile_weekday(field, expression)


# Remove when the error shows the string and what to write instead.
def _from_crontab(expr: str, timezone: tzinfo | str | None = None) -> CronTrigger:
    try:
        return _read_crontab(expr, timezone)
    except InvalidJobError:
        raise
    except ValueError as error:
        raise InvalidJobError(
            f'The cron string "{expr}" is invalid ({error}): write minute, hour, day, month and'
            ' weekday, for example "0 7 * * mon-fri", or use keywords, for example `day="last"`.'
        ) from error


# Remove when an interval must be positive. Zero becomes one second, and less loops forever.
def _positive_interval(
    trigger: IntervalTrigger,
    weeks: float = 0,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    **options: Any,
) -> None:
    interval = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    if interval <= timedelta():
        raise InvalidJobError("An interval must be positive, for example `hours=1`.")
    _create_interval(trigger, seconds=interval.total_seconds(), **options)


# Remove when a job at 02:30 runs once when daylight saving ends, as with cron. It runs twice.
def _without_repeated_hour(
    trigger: CronTrigger, previous: datetime | None, now: datetime
) -> datetime | None:
    """Skip the repeated hour, except for a job that runs every hour."""
    tick: datetime | None = _next_fire_time(trigger, previous, now)
    hour = next(str(field) for field in trigger.fields if field.name == "hour")
    while tick is not None and tick.fold and hour != "*":
        tick = _next_fire_time(trigger, None, tick.astimezone(UTC) + timedelta(seconds=1))
    return tick


# Remove when jitter is added in UTC. In a repeated hour it moves a tick back by an hour, and
# APScheduler then loops forever.
def _apply_jitter(
    _: BaseTrigger, tick: datetime | None, jitter: float | None, _now: datetime
) -> datetime | None:
    if tick is None or not jitter:
        return tick
    delay = timedelta(seconds=random.uniform(0, jitter))  # noqa: S311 - not a secret
    jittered: datetime = datetime_utc_add(tick, delay)
    return jittered
