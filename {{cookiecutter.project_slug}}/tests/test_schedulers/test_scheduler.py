"""One process, on a database of its own: ticks, policies, failures, shutdown."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import URL
from structlog.testing import capture_logs

from src.core.config import Settings
from src.db.models.scheduler import SchedulerJob, SchedulerRun
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.repositories.scheduler import SchedulerRepository
from src.schedulers import executor, ledger, open_scheduler
from src.schedulers import scheduler as schedulers
from src.schedulers.context import job_tick
from src.schedulers.ledger import Ledger
from src.services.scheduler import Overview, SchedulerService
from tests.proxy import Proxy

SOON = timedelta(milliseconds=50)
PATIENCE_SECONDS = 60
HOUR = timedelta(hours=1)


def settings_for(url: URL) -> Settings:
    return Settings(ENV="test", DATABASE_URL=SecretStr(url.render_as_string(hide_password=False)))


@pytest.fixture(autouse=True)
def _stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine costs nobody the lead; and nobody waits for long between two looks."""
    for module in (ledger, schedulers):
        monkeypatch.setattr(module, "LEASE_SECONDS", 2.0 * PATIENCE_SECONDS)
    monkeypatch.setattr(ledger, "ANSWER_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(schedulers, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(schedulers, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(executor, "RECORD_SECONDS", PATIENCE_SECONDS)


@pytest.fixture
def settings(committing_url: URL) -> Settings:
    return settings_for(committing_url)


Schedule = Callable[..., Any]


@pytest.fixture
def schedule(settings: Settings, committing_database: Database) -> Schedule:
    @asynccontextmanager
    async def schedule(
        job: Callable[..., object], *, drain: float = 1, **options: Any
    ) -> AsyncGenerator[None]:
        options = {"trigger": "interval", "hours": 1, "next_run_time": in_time()} | options

        def setup(scheduler: AsyncIOScheduler) -> None:
            scheduler.add_job(job, id="job", **options)

        async with open_scheduler(settings, committing_database, setup=setup, drain=drain):
            yield

    return schedule


def in_time() -> datetime:
    return datetime.now(UTC) + SOON


async def overview(database: Database) -> Overview:
    async with database.reads() as session:
        return await SchedulerService.overview(session, runs=100)


async def runs_of(database: Database, *, count: int = 1) -> Sequence[SchedulerRun]:
    """Wait until so many runs are over; return them, the newest first."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            jobs = (await overview(database)).jobs
            runs = jobs[0].runs if jobs else []
            if len([run for run in runs if run.finished_at]) >= count:
                return runs
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.02)


def counted(outcome: RunOutcome) -> float:
    labels = {"job": "job", "outcome": outcome}
    return REGISTRY.get_sample_value("scheduler_runs_total", labels) or 0


async def remember(database: Database, *, next_tick: datetime | None, trigger: str) -> None:
    """Leave behind what an earlier leader did."""
    async with database.transaction() as session:
        session.add(SchedulerJob(id="job", trigger=trigger, next_tick=next_tick))


async def nothing() -> None: ...


async def test_a_tick_is_run_recorded_and_shown(
    schedule: Schedule, committing_database: Database
) -> None:
    ticks = []

    async def job() -> None:
        ticks.append(job_tick())

    before = counted(RunOutcome.SUCCEEDED)
    async with schedule(job):
        (run,) = await runs_of(committing_database)
        shown = await overview(committing_database)

    assert (run.outcome, run.error, run.tick) == (RunOutcome.SUCCEEDED, None, ticks[0])
    assert run.finished_at is not None
    assert run.tick <= run.started_at <= run.finished_at
    assert shown.jobs[0].next_tick == run.tick + HOUR
    assert shown.leader is not None
    assert shown.leader.holder == run.holder
    assert counted(RunOutcome.SUCCEEDED) == before + 1


async def test_a_job_that_fails_is_told_of_and_the_next_tick_runs(
    schedule: Schedule, committing_database: Database
) -> None:
    """The log has the traceback, the history its last line; `sys.exit` is no way out either."""
    errors = iter([ValueError("no lamps\0"), SystemExit(3)])

    async def job() -> None:
        raise next(errors, RuntimeError("again"))

    before = counted(RunOutcome.FAILED)
    with capture_logs() as logs:
        async with schedule(job, hours=0, seconds=0.2):
            await until(lambda: counted(RunOutcome.FAILED) >= before + 3)

    runs = await runs_of(committing_database, count=3)
    second, first = [run for run in runs if run.outcome is RunOutcome.FAILED][-2:]
    assert (first.outcome, first.error) == (RunOutcome.FAILED, "ValueError: no lamps\\0")
    assert second.error == "SystemExit: 3"
    assert counted(RunOutcome.FAILED) >= before + 3
    assert next(log for log in logs if log["event"] == "job_failed")["exc_info"] is True


async def test_a_job_never_overlaps_itself(
    schedule: Schedule, committing_database: Database
) -> None:
    """Not even where it says that it may; the ticks in between are skipped, and said to be."""
    running = most = 0

    async def job() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5)
        running -= 1

    async with schedule(job, hours=0, seconds=0.1, max_instances=5):
        runs = await runs_of(committing_database, count=6)

    assert most == 1
    assert RunOutcome.SKIPPED in {run.outcome for run in runs}


@pytest.mark.parametrize(
    ("grace", "outcome"), [(None, RunOutcome.SUCCEEDED), (60, RunOutcome.MISSED)]
)
async def test_ticks_of_an_outage_are_caught_up_once_or_skipped(
    schedule: Schedule, committing_database: Database, grace: int | None, outcome: RunOutcome
) -> None:
    """By the job's policy. Ticks keep their rhythm, whoever leads and whenever it started."""
    missed = datetime.now(UTC) - timedelta(days=400, minutes=20)
    await remember(committing_database, next_tick=missed, trigger="interval[1:00:00]")

    async with schedule(nothing, next_run_time=in_time() + HOUR, misfire_grace_time=grace):
        (run,) = await runs_of(committing_database)
        shown = await overview(committing_database)

    assert (run.outcome, (run.tick - missed) % HOUR) == (outcome, timedelta(0))
    assert timedelta(0) < datetime.now(UTC) - run.tick < HOUR
    assert shown.jobs[0].next_tick == run.tick + HOUR


async def test_without_coalescing_every_missed_tick_runs(
    schedule: Schedule, committing_database: Database
) -> None:
    missed = datetime.now(UTC) - timedelta(hours=2, minutes=20)
    await remember(committing_database, next_tick=missed, trigger="interval[1:00:00]")

    async with schedule(nothing, coalesce=False, misfire_grace_time=None):
        runs = await runs_of(committing_database, count=3)

    assert [run.tick for run in runs] == [missed + n * HOUR for n in (2, 1, 0)]


async def test_a_restart_neither_repeats_nor_puts_off(
    schedule: Schedule, committing_database: Database
) -> None:
    """An hourly job of a service that is deployed every half hour runs all the same."""
    async with schedule(nothing):
        (run,) = await runs_of(committing_database)
    async with schedule(nothing):
        await leader_of(committing_database)
        await asyncio.sleep(2 * SOON.total_seconds())  # for a tick that must not come
        shown = await overview(committing_database)

    assert len(shown.jobs[0].runs) == 1
    assert shown.jobs[0].next_tick == run.tick + HOUR


async def test_a_job_of_one_tick_is_over_then(
    settings: Settings, committing_database: Database
) -> None:
    at = datetime.now(UTC)

    def setup(scheduler: AsyncIOScheduler) -> None:
        scheduler.add_job(nothing, "date", run_date=at, id="job")

    for _ in range(2):
        async with open_scheduler(settings, committing_database, setup=setup):
            await runs_of(committing_database)
    (job,) = (await overview(committing_database)).jobs

    assert ([run.tick for run in job.runs], job.next_tick) == ([at], None)


async def test_a_job_that_runs_by_another_clock_now_begins_anew(
    schedule: Schedule, committing_database: Database
) -> None:
    """And one that is gone from the code is gone from the table."""
    far = datetime.now(UTC) + timedelta(days=1)
    await remember(committing_database, next_tick=far, trigger="interval[1 day, 0:00:00]")
    async with committing_database.transaction() as session:
        session.add(SchedulerJob(id="gone", trigger="date", next_tick=None))

    async with schedule(nothing):
        await runs_of(committing_database)
        assert [job.id for job in (await overview(committing_database)).jobs] == ["job"]


async def test_what_a_dead_leader_left_running_is_lost(
    schedule: Schedule, committing_database: Database
) -> None:
    async with committing_database.transaction() as session:
        long_ago = datetime.now(UTC) - HOUR
        session.add(
            SchedulerRun(
                job="job", tick=long_ago, holder="dead", outcome=RunOutcome.RUNNING,
                started_at=long_ago,
            )
        )  # fmt: skip

    async with schedule(nothing):
        runs = await runs_of(committing_database, count=2)

    assert [run.outcome for run in runs] == [RunOutcome.SUCCEEDED, RunOutcome.LOST]


async def test_only_who_has_the_lease_may_claim_and_each_tick_once(
    committing_database: Database,
) -> None:
    """The fence: neither a leader that woke up too late nor the next one can run it again."""
    ledger = Ledger(committing_database)
    tick = datetime.now(UTC)
    claims: list[bool] = []
    for holder in ("one", "one", "two"):
        claims.append(await ledger.claim("job", tick, holder, next_tick=None))
        await ledger.take_lease("one")
    await ledger.release_lease("one")
    await ledger.take_lease("two")
    claims.append(await ledger.claim("job", tick, "one", next_tick=None))
    claims.append(await ledger.claim("job", tick, "two", next_tick=None))

    assert claims == [False, True, False, False, False]
    assert await ledger.renew_lease("one") is False
    assert await ledger.claim("job", tick + SOON, "two", next_tick=None)
    assert await ledger.claim("job", tick + SOON, "two", next_tick=None)  # its answer was lost


@pytest.mark.parametrize(
    ("drain", "seconds", "outcome"),
    [
        (PATIENCE_SECONDS, 0.2, RunOutcome.SUCCEEDED),
        (0.2, 2 * PATIENCE_SECONDS, RunOutcome.CANCELLED),
    ],
)
async def test_what_runs_at_shutdown_gets_a_while_to_finish(
    schedule: Schedule,
    committing_database: Database,
    drain: float,
    seconds: float,
    outcome: RunOutcome,
) -> None:
    """Then it is cancelled; either way the history says so, and the lease is free at once."""
    started = asyncio.Event()

    async def job() -> None:
        started.set()
        await asyncio.sleep(seconds)

    async with asyncio.timeout(PATIENCE_SECONDS), schedule(job, drain=drain):
        await started.wait()

    (run,) = await runs_of(committing_database)
    assert run.outcome is outcome
    assert (await overview(committing_database)).leader is None


async def test_a_database_that_is_away_is_said_once_and_holds_up_no_shutdown(
    committing_url: URL, committing_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(committing_url)
    await proxy.start()
    await proxy.stop()
    attempts: list[str] = []
    take_lease = Ledger.take_lease

    async def try_to_take_lease(self: Ledger, holder: str) -> bool:
        attempts.append(holder)
        if len(attempts) == 3:
            monkeypatch.setattr(schedulers, "POLL_SECONDS", 2.0 * PATIENCE_SECONDS)
        return await take_lease(self, holder)

    monkeypatch.setattr(Ledger, "take_lease", try_to_take_lease)
    with capture_logs() as logs:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with open_scheduler(settings_for(proxy.url), committing_database):
                await until(lambda: len(attempts) == 3)

    assert [log["event"] for log in logs] == ["scheduler_waits_for_database"]


@pytest.mark.parametrize(
    ("job", "options", "error"),
    [
        (lambda: None, {"id": "job"}, TypeError),
        (nothing, {}, ValueError),
    ],
)
async def test_a_job_that_cannot_work_is_refused_at_the_start(
    settings: Settings,
    committing_database: Database,
    job: Callable[..., object],
    options: dict[str, str],
    error: type[Exception],
) -> None:
    """One that would block the event loop, and one that each process would know by another name."""

    def setup(scheduler: AsyncIOScheduler) -> None:
        scheduler.add_job(job, "interval", hours=1, **options)

    with pytest.raises(error, match="job"):
        async with open_scheduler(settings, committing_database, setup=setup):
            pass


async def test_the_lease_is_one_row(committing_database: Database) -> None:
    """Of those who try at once, one gets it."""

    async def take(n: int) -> bool:
        async with committing_database.reads() as session:
            return await SchedulerRepository(session).take_lease(f"{n}", seconds=60)

    assert sum(await asyncio.gather(*map(take, range(10)))) == 1


async def test_who_loses_the_lead_stops_at_once_and_stands_by(
    schedule: Schedule, committing_database: Database
) -> None:
    """What it was running is cancelled: another may have begun the next tick."""
    cancelled = asyncio.Event()

    async def job() -> None:
        try:
            await asyncio.sleep(2 * PATIENCE_SECONDS)
        finally:
            cancelled.set()

    async with schedule(job):
        first = await leader_of(committing_database)
        await Ledger(committing_database).release_lease(first)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await cancelled.wait()
        (run,) = await runs_of(committing_database)
        second = await leader_of(committing_database)

    assert run.outcome is RunOutcome.CANCELLED
    assert second != first


async def leader_of(database: Database) -> str:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            shown = await overview(database)
            if shown.leader is not None and shown.jobs and shown.jobs[0].runs:
                return shown.leader.holder
            await asyncio.sleep(0.02)


async def test_a_short_outage_costs_neither_the_lead_nor_a_tick(
    committing_url: URL, committing_database: Database
) -> None:
    """The claim is tried again, and so is the record of how the run ended."""
    proxy = Proxy(committing_url)
    await proxy.start()
    stopped = 0

    async def job() -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 1:
            await proxy.stop()

    def setup(scheduler: AsyncIOScheduler) -> None:
        scheduler.add_job(job, "interval", seconds=0.5, id="job", next_run_time=in_time())

    with capture_logs() as logs:
        async with open_scheduler(settings_for(proxy.url), committing_database, setup=setup):
            await leader_of(committing_database)
            await until(lambda: "scheduler_waits_for_database" in [log["event"] for log in logs])
            await asyncio.sleep(0.6)  # for a tick, and for what is tried again
            await proxy.start()
            async with asyncio.timeout(PATIENCE_SECONDS):
                runs = await runs_of(committing_database, count=4)
                while not all(run.finished_at for run in runs[-2:]):
                    await asyncio.sleep(0.02)
                    runs = await runs_of(committing_database, count=4)

    assert len({run.holder for run in runs}) == 1
    assert {run.outcome for run in runs[-2:]} <= {RunOutcome.SUCCEEDED, RunOutcome.SKIPPED}
    await proxy.stop()
