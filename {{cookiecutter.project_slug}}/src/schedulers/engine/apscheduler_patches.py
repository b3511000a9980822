"""Fixes for APScheduler 3.11. The comment on each one says when it can be removed."""

import re
from copy import copy
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any

from apscheduler.triggers import calendarinterval, cron, date, interval
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.cron.expressions import (
    LastDayOfMonthExpression,
    MonthRangeExpression,
    WeekdayPositionExpression,
    WeekdayRangeExpression,
)
from apscheduler.triggers.cron.fields import DayOfWeekField
from apscheduler.triggers.interval import IntervalTrigger
from apscheduler.util import datetime_ceil

from src.core.config import get_settings
from src.schedulers.engine.job_scheduler import InvalidJobError

_next_fire_time = CronTrigger.get_next_fire_time
_next_date = CalendarIntervalTrigger.get_next_fire_time
_compile_weekday = DayOfWeekField.compile_expression
_read_crontab = CronTrigger.from_crontab
_create_interval = IntervalTrigger.__init__

NO_START = datetime(1970, 1, 1, tzinfo=UTC)  # of an interval
_MAX_CHANGE = timedelta(hours=3)  # changes for daylight saving time are at most two hours


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
    CronTrigger.get_next_fire_time = _next_cron_tick
    CalendarIntervalTrigger.get_next_fire_time = _next_calendar_tick
    CronTrigger.from_crontab = staticmethod(_from_crontab)
    IntervalTrigger.__init__ = _positive_interval


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
    # Without a start, ticks count from the leader's first tick, not from now on this clock.
    options = options | {"start_date": options.get("start_date") or NO_START}
    _create_interval(trigger, seconds=interval.total_seconds(), **options)
    trigger.timezone = UTC  # of its ticks; comparisons in one time zone ignore a repeated hour


# Remove when a job at a set time runs once a day. APScheduler skips days on which the clocks go
# forward, and runs 02:30 twice when they go back.
def _next_cron_tick(
    trigger: CronTrigger, previous: datetime | None, now: datetime
) -> datetime | None:
    """Search in local times, and return the tick in UTC.

    A skipped local time is later by the length of the gap. A repeated one counts once, except for
    jobs that run every hour.
    """
    start = max(now, trigger.start_date or now, key=datetime.timestamp)
    if previous is not None:
        start = previous + timedelta(microseconds=1)
    start = datetime_ceil(start.astimezone(UTC))
    local = copy(trigger)
    local.timezone, local.start_date, local.end_date, local.jitter = UTC, None, None, None
    hours = next(field for field in trigger.fields if field.name == "hour")
    is_hourly = all(hours.get_next_value(time(hour)) == hour for hour in range(24))

    def offset(at: datetime) -> timedelta:
        return at.astimezone(trigger.timezone).utcoffset() or timedelta()

    tick: datetime | None = None
    # Around a change, the order of local times is not the order of ticks.
    wall = start + min(offset(start - _MAX_CHANGE), offset(start), offset(start + _MAX_CHANGE))
    while (wall := _next_fire_time(local, None, wall)) is not None:
        first, second = (
            wall.replace(tzinfo=trigger.timezone, fold=fold).astimezone(UTC) for fold in (0, 1)
        )
        for found in (first, second) if is_hourly and second > first else (first,):
            if found >= start and (tick is None or found < tick):
                tick = found
        if tick and wall >= tick + max(offset(tick - _MAX_CHANGE), offset(tick)):
            break
        wall += timedelta(seconds=1)
    if tick is None or (trigger.end_date and tick > trigger.end_date):
        return None
    tick = trigger._apply_jitter(tick, trigger.jitter, now)  # noqa: SLF001 - no public method
    return min(tick, trigger.end_date or tick).astimezone(UTC)


# Remove when a day is not skipped because the clocks go forward.
def _next_calendar_tick(
    trigger: CalendarIntervalTrigger, previous: datetime | None, now: datetime
) -> datetime | None:
    local = copy(trigger)
    local.timezone, local._time = UTC, trigger._time.replace(tzinfo=UTC)  # noqa: SLF001 - see above
    wall: datetime | None = _next_date(
        local, previous and previous.astimezone(trigger.timezone), now
    )
    return wall and wall.replace(tzinfo=trigger.timezone).astimezone(UTC)
