"""A scheduler in this process: ticks, outcomes, shutdown, missed ticks and pruning."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.cron import CronTrigger
from prometheus_client import REGISTRY
from sqlalchemy import select

from src.core.config import Settings
from src.core.trace import principal_id
from src.db.models.scheduler import SchedulerJob, SchedulerRun
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.repositories import retention
from src.schedulers.context import JobContext, job_tick, use_context
from src.schedulers.jobs import setup_jobs
from src.schedulers.scheduler import build_scheduler
from tests.test_schedulers.conftest import (
    LIMIT_SECONDS,
    Logs,
    Schedule,
    leader_of,
    overview,
    runs_of,
    until,
)

HOUR = timedelta(hours=1)
HOURLY = "interval[1:00:00]"


async def nothing() -> None: ...


def is_leading() -> bool:
    return REGISTRY.get_sample_value("scheduler_leader") == 1


def counted(outcome: RunOutcome) -> float:
    labels = {"job": "job", "outcome": outcome}
    return REGISTRY.get_sample_value("scheduler_runs_total", labels) or 0


async def test_tick_is_run_recorded_and_listed(
    schedule: Schedule, committing_database: Database
) -> None:
    ticks = []

    async def job() -> None:
        ticks.append(job_tick())
        assert principal_id.get() == "job:job"

    before = counted(RunOutcome.SUCCEEDED)
    async with schedule(job):
        (run,) = await runs_of(committing_database)
        shown = await overview(committing_database)

    assert (run.outcome, run.error, run.tick) == (RunOutcome.SUCCEEDED, None, ticks[0])
    assert run.finished_at is not None
    assert run.tick <= run.started_at <= run.finished_at
    assert shown.jobs[0].next_tick == run.tick + timedelta(hours=1)
    assert shown.leader is not None
    assert shown.leader.holder == run.holder
    assert counted(RunOutcome.SUCCEEDED) == before + 1


async def test_failed_run_is_recorded_and_the_next_tick_runs(
    schedule: Schedule, committing_database: Database, logs: Logs
) -> None:
    """SystemExit in a job is a failure like any other exception, and so is a cancelled subtask."""
    errors = iter([ValueError("no lamps\0"), SystemExit(3), asyncio.CancelledError()])

    async def job() -> None:
        raise next(errors, RuntimeError("again"))

    async with schedule(job, hours=0, seconds=0.2):
        # A busy machine skips ticks.
        failed = await runs_of(committing_database, count=3, outcome=RunOutcome.FAILED)

    errors_of_runs = [run.error for run in reversed(failed[-3:])]
    assert errors_of_runs == ["ValueError: no lamps\\0", "SystemExit: 3", "CancelledError: "]
    assert next(log for log in logs if log["event"] == "job_failed")["exc_info"] is True


async def test_job_never_overlaps_itself(schedule: Schedule, committing_database: Database) -> None:
    """Ticks during a run are recorded as skipped."""
    running = most = 0

    async def job() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5)
        running -= 1

    async with schedule(job, hours=0, seconds=0.1):
        runs = await runs_of(committing_database, count=6)

    assert most == 1
    assert RunOutcome.SKIPPED in {run.outcome for run in runs}


@pytest.mark.parametrize(
    ("drain", "seconds", "outcome"),
    [
        (LIMIT_SECONDS, 0.2, RunOutcome.SUCCEEDED),
        (0.2, 2 * LIMIT_SECONDS, RunOutcome.CANCELLED),
    ],
)
async def test_shutdown_waits_for_runs_then_cancels_them(
    schedule: Schedule,
    committing_database: Database,
    drain: float,
    seconds: float,
    outcome: RunOutcome,
) -> None:
    """The outcome is recorded, and the lease is released immediately."""
    started = asyncio.Event()

    async def job() -> None:
        started.set()
        await asyncio.sleep(seconds)

    async with asyncio.timeout(LIMIT_SECONDS), schedule(job, drain=drain):
        await started.wait()

    (run,) = await runs_of(committing_database)
    assert run.outcome is outcome
    assert (await overview(committing_database)).leader is None


# --- ticks that were due while there was no leader ------------------------------------------------


async def leave(database: Database, *rows: SchedulerJob | SchedulerRun) -> None:
    """Insert the rows that an earlier leader would have left."""
    async with database.transaction() as session:
        session.add_all(rows)


@pytest.mark.parametrize(
    ("grace", "outcome"), [(None, RunOutcome.SUCCEEDED), (60, RunOutcome.MISSED)]
)
async def test_last_missed_tick_is_run_or_recorded_as_missed(
    schedule: Schedule, committing_database: Database, grace: int | None, outcome: RunOutcome
) -> None:
    """It depends on `misfire_grace_time`. The interval does not restart with the process."""
    missed = datetime.now(UTC) - timedelta(days=400, minutes=20)
    await leave(committing_database, SchedulerJob(id="job", trigger=HOURLY, next_tick=missed))

    async with schedule(nothing, next_run_time=datetime.now(UTC) + HOUR, misfire_grace_time=grace):
        (run,) = await runs_of(committing_database)
        shown = await overview(committing_database)

    assert (run.outcome, (run.tick - missed) % HOUR) == (outcome, timedelta(0))
    assert timedelta(0) < datetime.now(UTC) - run.tick < HOUR
    assert shown.jobs[0].next_tick == run.tick + HOUR


async def test_without_coalescing_every_missed_tick_runs(
    schedule: Schedule, committing_database: Database
) -> None:
    missed = datetime.now(UTC) - timedelta(hours=2, minutes=20)
    await leave(committing_database, SchedulerJob(id="job", trigger=HOURLY, next_tick=missed))

    async with schedule(nothing, coalesce=False, misfire_grace_time=None):
        runs = await runs_of(committing_database, count=3)

    assert [run.tick for run in runs] == [missed + n * HOUR for n in (2, 1, 0)]


async def test_restart_does_not_repeat_or_delay_a_tick(
    schedule: Schedule, committing_database: Database
) -> None:
    """An hourly job of a service that is deployed every half hour still runs every hour."""
    async with schedule(nothing):
        (run,) = await runs_of(committing_database)
    async with schedule(nothing):
        await leader_of(committing_database)
        await asyncio.sleep(0.1)  # for a tick that must not run
        shown = await overview(committing_database)

    assert len(shown.jobs[0].runs) == 1
    assert shown.jobs[0].next_tick == run.tick + HOUR


async def test_job_with_one_tick_does_not_run_again(
    schedule: Schedule, committing_database: Database
) -> None:
    at = datetime.now(UTC)
    for _ in range(2):
        async with schedule(nothing, trigger="date", run_date=at, next_run_time=at):
            runs = await runs_of(committing_database)

    assert [run.tick for run in runs] == [at]
    assert (await overview(committing_database)).jobs[0].next_tick is None


@pytest.mark.parametrize("is_new", [False, True])
async def test_paused_job_does_not_run_until_it_is_resumed(
    schedule: Schedule, committing_database: Database, *, is_new: bool
) -> None:
    """`next_run_time=None` also pauses a job that has run before. Missed ticks are skipped."""
    hour_ago = datetime.now(UTC) - HOUR
    if not is_new:
        await leave(committing_database, SchedulerJob(id="job", trigger=HOURLY, next_tick=hour_ago))
    async with schedule(nothing, next_run_time=None):
        await until(is_leading)
        paused = (await overview(committing_database)).jobs[0]
    async with schedule(nothing, next_run_time=hour_ago, misfire_grace_time=None):
        await until(is_leading)
        resumed = (await overview(committing_database)).jobs[0]

    assert (paused.id, paused.next_tick, paused.runs) == ("job", None, [])
    assert resumed.next_tick is not None
    assert resumed.next_tick > datetime.now(UTC)
    assert resumed.runs == []


async def test_date_in_the_past_is_missed_once(
    schedule: Schedule, committing_database: Database
) -> None:
    """A job that is left in the code after its date is no error."""
    at = datetime.now(UTC) - timedelta(days=1)
    for _ in range(2):
        async with schedule(nothing, trigger="date", run_date=at, next_run_time=at):
            runs = await runs_of(committing_database)

    assert [run.outcome for run in runs] == [RunOutcome.MISSED]


async def test_changed_time_zone_changes_the_next_tick(
    schedule: Schedule, committing_database: Database
) -> None:
    in_utc = SchedulerJob(id="job", trigger="cron[hour='9']", next_tick=datetime.now(UTC) + HOUR)
    await leave(committing_database, in_utc)
    trigger = CronTrigger(hour=9, timezone="Asia/Tokyo")
    following = trigger.get_next_fire_time(None, datetime.now(UTC))
    async with schedule(nothing, trigger=trigger, next_run_time=following):
        await until(is_leading)
        job = (await overview(committing_database)).jobs[0]

    assert (job.trigger, job.next_tick) == ("cron[hour='9'] Asia/Tokyo", following)


async def test_changed_trigger_resets_the_next_tick(
    schedule: Schedule, committing_database: Database
) -> None:
    """A job that is removed from the code is deleted from the table."""
    far = datetime.now(UTC) + timedelta(days=1)
    await leave(
        committing_database,
        SchedulerJob(id="job", trigger="interval[1 day, 0:00:00]", next_tick=far),
        SchedulerJob(id="gone", trigger="date", next_tick=None),
    )

    async with schedule(nothing):
        await runs_of(committing_database)
        jobs = (await overview(committing_database)).jobs

    assert [job.id for job in jobs] == ["job", "prune_run_history"]


async def test_unfinished_runs_of_a_dead_leader_are_lost(
    schedule: Schedule, committing_database: Database
) -> None:
    at = datetime.now(UTC) - HOUR
    run = {"holder": "dead", "outcome": RunOutcome.RUNNING}
    await leave(committing_database, SchedulerRun(job="job", tick=at, started_at=at, **run))

    before = counted(RunOutcome.LOST)

    async with schedule(nothing):
        runs = await runs_of(committing_database, count=2)

    assert [run.outcome for run in runs] == [RunOutcome.SUCCEEDED, RunOutcome.LOST]
    assert counted(RunOutcome.LOST) == before + 1


# --- pruning ------------------------------------------------------------------------------


async def test_old_runs_are_pruned(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches, by the job `prune_run_history`."""
    monkeypatch.setattr(retention, "BATCH", 2)
    jobs = {job.id: job for job in build_scheduler(setup_jobs).get_jobs()}
    ticks = [datetime.now(UTC) - timedelta(days=days) for days in (0, 4, 6, 7, 8)]
    run = {"job": "job", "holder": "x", "outcome": RunOutcome.SUCCEEDED}
    async with database.transaction() as db:
        db.add_all(SchedulerRun(tick=tick, started_at=tick, **run) for tick in ticks)

    settings = Settings(ENV="test", SCHEDULER_HISTORY_DAYS=5)
    with use_context(JobContext(settings, database)):
        await jobs["prune_run_history"].func()

    async with database.reads() as reads:
        left = await reads.scalars(select(SchedulerRun.tick))
    assert set(left) == set(ticks[:2])
