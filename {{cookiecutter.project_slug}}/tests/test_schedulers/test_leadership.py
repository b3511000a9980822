"""Leader election, claimed ticks, and a leader that loses its lease or its database."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pydantic import SecretStr
from sqlalchemy import URL

from src.core.config import Settings
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.repositories.scheduler import SchedulerRepository
from src.schedulers.engine import leadership
from src.schedulers.engine.catch_up import catch_up
from src.schedulers.scheduler import open_scheduler
from tests.pgbouncer import needs_pgbouncer
from tests.proxy import PostgresProxy
from tests.test_schedulers.conftest import LIMIT_SECONDS, Logs, Schedule, leader_of, runs_of, until


@pytest.fixture
async def tables(committing_database: Database) -> AsyncGenerator[SchedulerRepository]:
    async with committing_database.reads() as session:
        yield SchedulerRepository(session)


async def test_only_the_leader_claims_a_tick_and_only_once(tables: SchedulerRepository) -> None:
    """A frozen leader that wakes up cannot repeat a run, and the next leader cannot either."""
    now = datetime.now(UTC)

    async def claim(holder: str, tick: datetime = now) -> bool:
        outcome = RunOutcome.RUNNING
        return await tables.claim("job", tick, holder, next_tick=None, outcome=outcome)

    assert not await claim("one")
    await tables.acquire_lease("one", seconds=LIMIT_SECONDS)
    assert await claim("one")
    assert not await claim("two")

    await tables.release_lease("one")
    await tables.acquire_lease("two", seconds=LIMIT_SECONDS)
    assert not await tables.renew_lease("one", seconds=LIMIT_SECONDS)
    assert not await claim("one")
    assert not await claim("two")
    for _ in range(2):  # a claim can be repeated, since its response may be lost
        assert await claim("two", now + timedelta(hours=1))


async def test_one_of_several_concurrent_attempts_acquires_the_lease(
    committing_database: Database,
) -> None:
    async def acquire(n: int) -> datetime | None:
        async with committing_database.reads() as session:
            return await SchedulerRepository(session).acquire_lease(f"{n}", seconds=60)

    acquired = await asyncio.gather(*map(acquire, range(10)))
    assert len([time for time in acquired if time]) == 1


async def test_leader_that_loses_the_lease_cancels_its_runs(
    schedule: Schedule, committing_database: Database, tables: SchedulerRepository, logs: Logs
) -> None:
    """Another leader may already run the next tick. The process then tries to lead again."""
    cancelled = asyncio.Event()

    async def job() -> None:
        try:
            await asyncio.sleep(2 * LIMIT_SECONDS)
        finally:
            cancelled.set()

    async with schedule(job):
        first = await leader_of(committing_database)
        await tables.release_lease(first)
        async with asyncio.timeout(LIMIT_SECONDS):
            await cancelled.wait()
        (run,) = await runs_of(committing_database)
        second = await leader_of(committing_database)

    assert run.outcome is RunOutcome.CANCELLED
    assert second != first
    assert [log["event"] for log in logs][:2] == ["leadership_acquired", "leadership_lost"]


async def test_leader_and_ticks_survive_a_short_outage(
    schedule: Schedule, committing_database: Database, db_proxy: PostgresProxy, logs: Logs
) -> None:
    """The scheduler retries the claim and the record of the outcome."""
    stopped = 0

    async def job() -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 1:
            await db_proxy.stop()

    async with schedule(job, url=db_proxy.url, hours=0, seconds=0.5):
        await until(lambda: "scheduler_unavailable" in [log["event"] for log in logs])
        await asyncio.sleep(0.6)  # for a tick and for retries
        await db_proxy.start()
        runs = await runs_of(committing_database, count=4)
        async with asyncio.timeout(LIMIT_SECONDS):
            while not all(run.finished_at for run in runs[-2:]):
                await asyncio.sleep(0.02)
                runs = await runs_of(committing_database, count=4)

    assert len({run.holder for run in runs}) == 1
    assert {run.outcome for run in runs[-2:]} <= {RunOutcome.SUCCEEDED, RunOutcome.SKIPPED}
    events = [log["event"] for log in logs if log["event"].startswith("scheduler_")]
    assert events == ["scheduler_unavailable", "scheduler_recovered"]


@pytest.mark.parametrize("step", ["setup_jobs", "catch_up"])
async def test_failed_start_gives_the_leadership_to_another_process(
    schedule: Schedule,
    committing_database: Database,
    committing_url: URL,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
    *,
    step: str,
) -> None:
    async def job() -> None: ...

    failures = iter([False, True])  # the first call is the check at startup

    def setup(_: AsyncIOScheduler) -> None:
        if step == "setup_jobs" and next(failures):
            raise RuntimeError(step)

    def fail(*_: object) -> None:
        raise RuntimeError(step)

    if step == "catch_up":
        monkeypatch.setattr(leadership, "catch_up", fail)
    url = SecretStr(committing_url.render_as_string(hide_password=False))
    settings = Settings(ENV="test", DATABASE_URL=url)
    async with open_scheduler(settings, committing_database, setup=setup):
        await until(lambda: "scheduler_failed" in [log["event"] for log in logs])
        monkeypatch.setattr(leadership, "catch_up", catch_up)
        async with schedule(job):
            (run,) = await runs_of(committing_database)

    assert run.outcome is RunOutcome.SUCCEEDED


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
async def test_unavailable_database_does_not_delay_the_shutdown(
    schedule: Schedule,
    db_proxy: PostgresProxy,
    monkeypatch: pytest.MonkeyPatch,
    logs: Logs,
    fault: str,
) -> None:
    """Between two attempts and during an attempt."""
    monkeypatch.setattr(leadership, "POLL_SECONDS", 2.0 * LIMIT_SECONDS)
    if fault == "hangs":
        db_proxy.freeze()
    else:
        await db_proxy.stop()

    async def nothing() -> None: ...

    async with asyncio.timeout(LIMIT_SECONDS), schedule(nothing, url=db_proxy.url):
        if fault == "hangs":
            await asyncio.sleep(0.1)  # for an attempt to start
        else:
            await until(lambda: logs)


@needs_pgbouncer
async def test_jobs_run_behind_a_pooler(
    schedule: Schedule, committing_database: Database, pooler_url: URL
) -> None:
    ran = asyncio.Event()

    async def job() -> None:
        ran.set()

    async with schedule(job, url=pooler_url):
        async with asyncio.timeout(LIMIT_SECONDS):
            await ran.wait()
        (run,) = await runs_of(committing_database)

    assert run.outcome is RunOutcome.SUCCEEDED
