"""The lease and the claims, and what a leader does when it loses either or the database."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest

from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.repositories.scheduler import SchedulerRepository
from src.schedulers.engine import leadership
from tests.proxy import Proxy
from tests.test_schedulers.conftest import LIMIT_SECONDS, Logs, Schedule, leader_of, runs_of, until


@pytest.fixture
async def tables(committing_database: Database) -> AsyncGenerator[SchedulerRepository]:
    async with committing_database.reads() as session:
        yield SchedulerRepository(session)


async def test_only_the_leader_claims_and_each_tick_once(tables: SchedulerRepository) -> None:
    """So neither a leader that wakes up too late nor the next leader repeats a run."""
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
    for _ in range(2):  # the response to a claim may be lost
        assert await claim("two", now + timedelta(hours=1))


async def test_of_several_that_try_at_once_one_acquires_the_lease(
    committing_database: Database,
) -> None:
    async def acquire(n: int) -> bool:
        async with committing_database.reads() as session:
            return await SchedulerRepository(session).acquire_lease(f"{n}", seconds=60)

    assert sum(await asyncio.gather(*map(acquire, range(10)))) == 1


async def test_a_leader_that_loses_the_lease_cancels_its_runs(
    schedule: Schedule, committing_database: Database, tables: SchedulerRepository, logs: Logs
) -> None:
    """Another process may have started the next tick. It tries to lead again."""
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


async def test_a_short_outage_costs_neither_leadership_nor_a_tick(
    schedule: Schedule, committing_database: Database, db_proxy: Proxy, logs: Logs
) -> None:
    """The claim is tried again, and so is the record of the outcome."""
    stopped = 0

    async def job() -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 1:
            await db_proxy.stop()

    async with schedule(job, url=db_proxy.url, hours=0, seconds=0.5):
        await until(lambda: "scheduler_unavailable" in [log["event"] for log in logs])
        await asyncio.sleep(0.6)  # for a tick, and for what is tried again
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


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
async def test_an_unavailable_database_delays_no_shutdown(
    schedule: Schedule, db_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, logs: Logs, fault: str
) -> None:
    """Neither between two attempts nor during one."""
    monkeypatch.setattr(leadership, "POLL_SECONDS", 2.0 * LIMIT_SECONDS)
    if fault == "hangs":
        db_proxy.freeze()
    else:
        await db_proxy.stop()

    async def nothing() -> None: ...

    async with asyncio.timeout(LIMIT_SECONDS), schedule(nothing, url=db_proxy.url):
        if fault == "hangs":
            await asyncio.sleep(0.1)  # for an attempt to begin
        else:
            await until(lambda: logs)
