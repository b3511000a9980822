"""Jobs that cannot run as written fail at startup; cron times across daylight saving changes."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from src.core.config import Settings
from src.db.session import Database
from src.schedulers.engine.job_scheduler import InvalidJobError
from src.schedulers.scheduler import build_scheduler, open_scheduler

BERLIN = "Europe/Berlin"
HOUR = timedelta(hours=1)
crontab = CronTrigger.from_crontab


async def job() -> None: ...


async def greet(name: str) -> None: ...


def sync_job() -> None: ...


def build(*jobs: Mapping[str, Any]) -> AsyncIOScheduler:
    def setup(scheduler: AsyncIOScheduler) -> None:
        for options in jobs:
            scheduler.add_job(**{"func": job, "trigger": "interval", "hours": 1} | dict(options))

    return build_scheduler(setup)


@pytest.mark.parametrize("replace_existing", [False, True])
async def test_two_jobs_with_one_id_fail_at_startup(
    database: Database, settings: Settings, *, replace_existing: bool
) -> None:
    def setup(scheduler: AsyncIOScheduler) -> None:
        for func in (job, greet):
            scheduler.add_job(
                func, "cron", hour=7, id="twin", args=[] if func is job else ["Ann"],
                replace_existing=replace_existing,
            )  # fmt: skip

    with pytest.raises(InvalidJobError, match="Two jobs have the id twin"):
        async with open_scheduler(settings, database, setup=setup):
            pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"func": sync_job}, "The job x must be an `async def`"),
        ({"id": None}, "The job job needs an `id`"),
        ({"id": "x" * 201}, "needs an `id` of 1 to 200 printable characters"),
        ({"id": "a\0b"}, "printable characters"),
        ({"func": greet}, "not been supplied: name"),
        ({"executor": "processpool"}, "cannot have a `jobstore` or an `executor`"),
        ({"max_instances": 3}, "never overlaps itself"),
        ({"trigger": "crno"}, 'The job x is invalid: No trigger by the name "crno"'),
        ({"trigger": "cron"}, "unexpected keyword argument 'hours'"),
        ({"hours": 0}, "An interval must be positive"),
        ({"hours": -1}, "An interval must be positive"),
        ({"jitter": -1}, "needs a `jitter` of 0 or more seconds"),
        ({"trigger": "0 9 * * *"}, r'The job x .* `trigger=CronTrigger.from_crontab\("0 9'),
        ({"args": "0 9 * * *"}, "from_crontab"),
    ],
)
def test_invalid_job_is_rejected(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJobError, match=words):
        build({"id": "x"} | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs a `run_date`"),
        ({"trigger": "cron", "day_of_week": 1}, 'weekday "1"'),
        ({"trigger": crontab("0 9 1 * mon")}, 'day "1" and the weekday "mon"'),
        ({"trigger": "cron", "day_of_week": "mon#2"}, 'Unrecognized expression "mon#2"'),
        ({"trigger": "cron", "day_of_week": "mon-fri/2"}, "Unrecognized expression"),
        ({"trigger": "cron"}, "runs every second"),
        ({"trigger": "cron", "hour": 7, "timezone": "Berlin"}, "No time zone found"),
        ({"trigger": "cron", "hour": 7, "jitter": "60"}, "needs a `jitter`"),
        ({"trigger": OrTrigger([CronTrigger(hour=7), CronTrigger()])}, "runs every second"),
        ({"trigger": AndTrigger([CronTrigger(), CronTrigger()])}, "search for a time forever"),
        ({"trigger": "cron", "hour": 25}, "The job x is invalid: .*maximum value"),
        ({"trigger": "cron", "month": 2, "day": 30}, "never runs"),
    ],
)
def test_misleading_trigger_is_rejected(options: dict[str, Any], words: str) -> None:
    def setup(scheduler: AsyncIOScheduler) -> None:
        scheduler.add_job(job, id="x", **options)

    with pytest.raises(InvalidJobError, match=words):
        build_scheduler(setup)


@pytest.mark.parametrize("weekday", ["1", "0", "7", "1-5", "mon,3", "*/2"])
def test_weekday_number_is_rejected(weekday: str) -> None:
    """`1` is Monday for cron and Tuesday for APScheduler."""
    with pytest.raises(InvalidJobError, match='write names, for example "mon"'):
        crontab(f"0 9 * * {weekday}")
    with pytest.raises(InvalidJobError, match='write names, for example "mon"'):
        CronTrigger(day_of_week=weekday)


@pytest.mark.parametrize("text", ["@daily", "0 0 9 * * *", "0 9 L * *", "0 9 * * mon#2"])
def test_other_kinds_of_cron_strings_are_rejected(text: str) -> None:
    with pytest.raises(InvalidJobError, match=f"{re.escape(text)}.* write minute, hour, day"):
        crontab(text)


def test_interval_of_zero_is_rejected() -> None:
    with pytest.raises(InvalidJobError, match="must be positive"):
        IntervalTrigger()


async def async_setup(scheduler: AsyncIOScheduler) -> None: ...


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (async_setup, "must be a `def`"),
        (lambda scheduler: scheduler.start(), "must not start the scheduler"),
        (lambda scheduler: scheduler.add_listener(print), "Listeners"),
    ],
)
async def test_invalid_setup_fails_at_startup(
    database: Database,
    settings: Settings,
    setup: Callable[[AsyncIOScheduler], None],
    words: str,
) -> None:
    with pytest.raises(InvalidJobError, match=words):
        async with open_scheduler(settings, database, setup=setup):
            pass


def test_valid_jobs_are_accepted() -> None:
    """Partials and arguments work. An ended trigger is no error, since its job has run before."""
    past = datetime.now(UTC) - timedelta(days=1)
    own = {"id": "prune_run_history"}  # replaces the built-in job
    scheduler = build(
        {"id": "partial", "func": partial(greet, "Ann")},
        {"id": "arguments", "func": greet, "args": ["Ann"], "max_instances": 1},
        {"id": "reference", "func": f"{__name__}:job"},
        {"id": "ended", "hours": 1, "end_date": past},
        {"id": "paused", "next_run_time": None},
        own,
    )

    assert len(scheduler.get_jobs()) == 6


def ticks(trigger: BaseTrigger, start: datetime, count: int) -> list[datetime]:
    found: list[datetime] = []
    previous = None
    for _ in range(count):
        previous = trigger.get_next_fire_time(previous, previous or start)
        assert previous is not None
        found.append(previous.astimezone(UTC))
    return found


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        (BERLIN, "2027-03-28"),
        (BERLIN, "2027-10-31"),
        ("America/Sao_Paulo", "2018-11-04"),  # from 00:00 to 01:00
        ("America/Sao_Paulo", "2018-02-17"),  # from 00:00 to 23:00
        ("Africa/Cairo", "2027-04-30"),
        ("Atlantic/Azores", "2027-10-31"),
        ("Australia/Lord_Howe", "2027-04-04"),  # half an hour
        ("Australia/Lord_Howe", "2027-10-03"),
        ("Antarctica/Troll", "2027-03-28"),  # two hours
        ("Pacific/Apia", "2011-12-29"),  # the next day did not exist
    ],
)
@pytest.mark.parametrize("kind", [CronTrigger, CalendarIntervalTrigger])
def test_daily_job_runs_once_a_day_across_a_change_of_the_clocks(
    zone: str, day: str, kind: type[BaseTrigger]
) -> None:
    """At each time of day, and also if a new leader starts to count at any time."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) - timedelta(days=2)
    days = [start.date() + timedelta(days=n) for n in range(6)]
    if zone == "Pacific/Apia":
        days[3:] = [each + timedelta(days=1) for each in days[3:]]
    for quarter in range(96):
        options = {"days": 1, "start_date": str(start.date())} if kind is not CronTrigger else {}
        hour, minute = divmod(quarter * 15, 60)
        trigger = kind(hour=hour, minute=minute, timezone=zone, **options)
        found = ticks(trigger, start, 6)
        assert [tick.astimezone(ZoneInfo(zone)).date() for tick in found] == days
        if kind is CronTrigger:
            restarted = [trigger.get_next_fire_time(None, tick - HOUR) for tick in found]
            assert restarted == found


@pytest.mark.parametrize(
    ("fields", "day", "expected"),
    [
        ({"hour": 2, "minute": 30}, "2027-03-28", "03:30:00+02:00"),
        ({"hour": 2, "minute": 30}, "2027-10-31", "02:30:00+02:00"),
        ({"hour": "2,3", "minute": "0,30"}, "2027-03-28", "03:00:00+02:00 03:30:00+02:00"),
        ({"hour": "*/12", "day_of_week": "sun"}, "2027-03-28", "00:00:00+01:00 12:00:00+02:00"),
        ({"day": "last sun", "hour": "23,0"}, "2027-10-31", "00:00:00+02:00 23:00:00+01:00"),
        ({"month": 2, "day": "last", "hour": 0}, "2028-02-29", "00:00:00+01:00"),
        ({"week": 53, "hour": 23, "minute": 59}, "2026-12-31", "23:59:00+01:00"),
        (
            {"hour": 2, "minute": "10,35", "timezone": "Australia/Lord_Howe"},
            "2027-10-03",
            "02:35:00+11:00 02:40:00+11:00",
        ),
    ],
)
def test_cron_fields_on_special_days(fields: dict[str, Any], day: str, expected: str) -> None:
    trigger = CronTrigger(**{"timezone": BERLIN} | fields)
    start = datetime.fromisoformat(day).replace(tzinfo=trigger.timezone)
    found = [tick.astimezone(trigger.timezone) for tick in ticks(trigger, start, 3)]
    times = [tick.isoformat()[11:] for tick in found if tick.date() == start.date()]

    assert " ".join(times) == expected


def test_interval_job_continues_through_a_repeated_hour() -> None:
    trigger = IntervalTrigger(hours=1, start_date="2027-10-31 00:30:00", timezone=BERLIN)
    first = datetime(2027, 10, 30, 22, 30, tzinfo=UTC)

    assert ticks(trigger, first, 5) == [first + n * HOUR for n in range(5)]


@pytest.mark.parametrize("jitter", [None, 5])
def test_hourly_job_runs_every_hour_of_a_daylight_saving_change(jitter: int | None) -> None:
    trigger = CronTrigger(minute=30, timezone=BERLIN, jitter=jitter)
    for day in (datetime(2027, 3, 27, 22, tzinfo=UTC), datetime(2027, 10, 30, 22, tzinfo=UTC)):
        found = [tick.replace(second=0, microsecond=0) for tick in ticks(trigger, day, 5)]
        assert found == [day + timedelta(minutes=30, hours=n) for n in range(5)]


def test_time_zone_is_the_setting_not_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "src.schedulers.engine.apscheduler_patches.get_settings",
        lambda: Settings(ENV="test", SCHEDULER_TIMEZONE=BERLIN),
    )
    scheduler = build_scheduler(lambda _: None, timezone=ZoneInfo(BERLIN))
    by_name = scheduler.add_job(job, "cron", hour=9, id="x").trigger

    for trigger in (by_name, CronTrigger(hour=9)):
        assert ticks(trigger, datetime(2027, 7, 1, tzinfo=UTC), 1) == [
            datetime(2027, 7, 1, 7, tzinfo=UTC)
        ]
    assert DateTrigger("2027-07-01 09:00:00").run_date.utcoffset() == timedelta(hours=2)
