"""What a leader does about ticks that came while there was none."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from src.db.models.scheduler import SchedulerJob, SchedulerRun
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from tests.test_schedulers.conftest import Schedule, leader_of, overview, runs_of

HOUR = timedelta(hours=1)
HOURLY = "interval[1:00:00]"


async def nothing() -> None: ...


async def leave(database: Database, *rows: SchedulerJob | SchedulerRun) -> None:
    """Write what an earlier leader would have left."""
    async with database.transaction() as session:
        session.add_all(rows)


@pytest.mark.parametrize(
    ("grace", "outcome"), [(None, RunOutcome.SUCCEEDED), (60, RunOutcome.MISSED)]
)
async def test_of_missed_ticks_the_last_is_run_or_recorded_as_missed(
    schedule: Schedule, committing_database: Database, grace: int | None, outcome: RunOutcome
) -> None:
    """As `misfire_grace_time` says. Ticks keep their rhythm, whenever a process started."""
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


async def test_a_restart_neither_repeats_nor_delays_a_tick(
    schedule: Schedule, committing_database: Database
) -> None:
    """An hourly job of a service that is deployed every half hour still runs every hour."""
    async with schedule(nothing):
        (run,) = await runs_of(committing_database)
    async with schedule(nothing):
        await leader_of(committing_database)
        await asyncio.sleep(0.1)  # for a tick that must not come
        shown = await overview(committing_database)

    assert len(shown.jobs[0].runs) == 1
    assert shown.jobs[0].next_tick == run.tick + HOUR


async def test_a_job_of_one_tick_has_ended_then(
    schedule: Schedule, committing_database: Database
) -> None:
    at = datetime.now(UTC)
    for _ in range(2):
        async with schedule(nothing, trigger="date", run_date=at, next_run_time=at):
            runs = await runs_of(committing_database)

    assert [run.tick for run in runs] == [at]
    assert (await overview(committing_database)).jobs[0].next_tick is None


async def test_a_job_with_another_trigger_starts_from_the_code(
    schedule: Schedule, committing_database: Database
) -> None:
    """A job that is gone from the code is gone from the table."""
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


async def test_runs_that_a_dead_leader_left_are_lost(
    schedule: Schedule, committing_database: Database
) -> None:
    at = datetime.now(UTC) - HOUR
    run = {"holder": "dead", "outcome": RunOutcome.RUNNING}
    await leave(committing_database, SchedulerRun(job="job", tick=at, started_at=at, **run))

    async with schedule(nothing):
        runs = await runs_of(committing_database, count=2)

    assert [run.outcome for run in runs] == [RunOutcome.SUCCEEDED, RunOutcome.LOST]
