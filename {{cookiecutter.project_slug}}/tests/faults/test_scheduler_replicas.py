"""Several processes and a job that runs each second: no tick runs twice, whatever the leader does.

Run as a program, this module is one of the processes.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import httpx
import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy import URL, text

from src.core.config import get_settings
from src.db.session import Database, open_database
from src.schedulers.context import job_tick
from src.schedulers.engine import process
from tests.faults.conftest import Report
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import Process, serving
from tests.fixtures.environment import API
from tests.proxy import PostgresProxy
from tests.test_schedulers.conftest import LIMIT_SECONDS, overview, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's"),
]

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")
FAKETIME = {
    "LD_PRELOAD": str(LIBRARY),
    "FAKETIME_NO_CACHE": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
}
# In this database, the time of PostgreSQL is a function that a test can change.
CLOCK = """
CREATE TABLE clock AS SELECT '0 hours'::interval AS ahead;
CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS $$ SELECT pg_catalog.clock_timestamp() + ahead FROM clock $$;
ALTER DATABASE "NAME" SET search_path = public, pg_catalog
"""


class Run(NamedTuple):
    tick: str
    pid: int


@dataclass
class Replicas:
    """Scheduler processes, and the file that their job writes."""

    file: Path
    database: Database
    processes: dict[int, Process] = field(default_factory=dict)

    def start(self, url: URL, **variables: str) -> int:
        variables["DATABASE_URL"] = url.render_as_string(hide_password=False)
        log = self.file.with_name("log")
        process = Process("-m", __name__, self.file, log=log, **variables)
        self.processes[process.pid] = process
        return process.pid

    def runs(self) -> list[Run]:
        if not self.file.exists():
            return []
        return [Run(*json.loads(line)) for line in self.file.read_text("utf-8").splitlines()]

    def ticks(self) -> set[datetime]:
        return {datetime.fromisoformat(run.tick) for run in self.runs()}

    async def wait_for_runs(self, count: int) -> None:
        await until(lambda: len(self.runs()) >= count)

    async def leader(self) -> int:
        lease = (await overview(self.database)).leader
        return int(lease.holder.split(":")[1]) if lease else 0

    async def wait_for_another(self, pid: int) -> None:
        """Wait until another process than `pid` has run the job three times."""
        await until(lambda: len([run for run in self.runs()[-3:] if run.pid != pid]) == 3)

    def assert_each_tick_once(self) -> None:
        ticks = Counter(run.tick for run in self.runs())
        assert {tick: n for tick, n in ticks.items() if n > 1} == {}


@pytest.fixture
async def replicas(tmp_path: Path, fresh_url: URL) -> AsyncGenerator[Replicas]:
    async with open_database(fresh_url, pool_size=1) as database:
        replicas = Replicas(tmp_path / "runs", database)
        try:
            yield replicas
        finally:
            for process in replicas.processes.values():
                process.kill()


@pytest.mark.parametrize(
    "fault", ["killed", "frozen", "refused by PostgreSQL", "cut off from PostgreSQL"]
)
async def test_failed_leader_is_replaced_and_no_run_is_repeated(
    replicas: Replicas, fresh_url: URL, db_proxy: PostgresProxy, fault: str, report: Report
) -> None:
    """The leader is killed, is frozen and wakes up later, or its database is unavailable."""
    first = replicas.start(db_proxy.url.set(database=fresh_url.database))
    await replicas.wait_for_runs(2)
    replicas.start(fresh_url)
    failed_at = monotonic()
    if fault == "killed":
        replicas.processes[first].kill()
    elif fault == "frozen":
        replicas.processes[first].send_signal(signal.SIGSTOP)
    elif fault == "refused by PostgreSQL":
        await db_proxy.stop()
    else:
        db_proxy.freeze()
    await until(lambda: replicas.runs()[-1].pid != first)
    seconds = monotonic() - failed_at
    await replicas.wait_for_another(first)
    if fault == "frozen":
        replicas.processes[first].send_signal(signal.SIGCONT)
        count = len(replicas.runs())
        await replicas.wait_for_runs(count + 4)
        assert {run.pid for run in replicas.runs()[count + 1 :]} == {await replicas.leader()}
    replicas.assert_each_tick_once()
    runs = f"{len(replicas.runs())} runs"
    report(f"Leader of the scheduler is {fault}", None, runs, seconds)


@needs_faketime
async def test_clock_of_a_scheduler_does_not_matter(
    replicas: Replicas, fresh_url: URL, tmp_path: Path
) -> None:
    """It is an hour ahead, jumps, and is right in the next leader: a tick each second."""
    file = tmp_path / "offset"
    file.write_text("+1h")
    started_at = datetime.now(UTC)
    first = replicas.start(fresh_url, **FAKETIME, FAKETIME_TIMESTAMP_FILE=str(file))
    for offset in ("-1h", "+0", "+1h"):
        await replicas.wait_for_runs(len(replicas.runs()) + 3)
        file.write_text(offset)
    replicas.processes[first].kill()
    replicas.start(fresh_url)
    await replicas.wait_for_another(first)
    assert started_at < min(replicas.ticks())
    assert max(replicas.ticks()) < datetime.now(UTC)
    replicas.assert_each_tick_once()


@pytest.mark.parametrize("trigger", ["interval", "cron"])
async def test_postgres_clock_can_be_set(replicas: Replicas, fresh_url: URL, trigger: str) -> None:
    """An hour forward, back by ten seconds, in which ticks were claimed, and back by two hours."""
    async with replicas.database.transaction() as session:
        for statement in CLOCK.split(";"):
            await session.execute(text(statement.replace("NAME", str(fresh_url.database))))
    replicas.start(fresh_url, TRIGGER=trigger)
    await replicas.wait_for_runs(3)
    for seconds in (3600, 3590, -3600):
        async with replicas.database.transaction() as session:
            set_clock = text("UPDATE clock SET ahead = make_interval(secs => :seconds)")
            await session.execute(set_clock, {"seconds": seconds})
        await replicas.wait_for_runs(len(replicas.runs()) + 5)
        tick = datetime.fromisoformat(replicas.runs()[-1].tick)
        assert abs(tick - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(minutes=9)
    replicas.assert_each_tick_once()


async def test_scheduling_continues_after_an_outage_of_the_database(
    replicas: Replicas, fresh_url: URL, db_proxy: PostgresProxy
) -> None:
    for _ in range(2):
        replicas.start(db_proxy.url.set(database=fresh_url.database))
    await replicas.wait_for_runs(2)
    await db_proxy.stop()
    await asyncio.sleep(8)  # the lease expires
    count = len(replicas.runs())
    await db_proxy.start()
    await replicas.wait_for_runs(count + 3)
    replicas.assert_each_tick_once()
    # When the connection breaks, a claimed tick may not have run, or the outcome of a run may not
    # have been recorded. Both are lost. On a busy machine, a tick may be skipped.
    async with replicas.database.reads() as session:
        succeeded = text("SELECT tick FROM scheduler_run WHERE outcome = 'succeeded'")
        assert set(await session.scalars(succeeded)) <= replicas.ticks()
        ticks = replicas.ticks()
        assert ticks <= set(await session.scalars(text("SELECT tick FROM scheduler_run")))


async def test_one_api_worker_is_the_leader(replicas: Replicas, fresh_url: URL) -> None:
    """Each worker shows the leader, also in the metrics."""
    url = fresh_url.render_as_string(hide_password=False)
    with serving("--workers", "2", "--scheduler-enabled", DATABASE_URL=url) as (process, address):
        async with (
            asyncio.timeout(LIMIT_SECONDS),
            httpx.AsyncClient(base_url=address, headers=HEADERS, timeout=LIMIT_SECONDS) as client,
        ):
            while "scheduler_leader 1.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110 - another process sets it
                await asyncio.sleep(0.05)
            shown = (await client.get(f"{API}/scheduler/jobs")).json()

    assert "prune_run_history" in [job["id"] for job in shown["jobs"]]
    assert int(shown["leader"]["holder"].split(":")[1]) != process.pid
    assert await replicas.leader() == 0  # the lease is released


async def job(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([str(job_tick()), os.getpid()]) + "\n")


def setup(scheduler: AsyncIOScheduler) -> None:
    trigger = os.environ.get("TRIGGER", "interval")
    options = {"seconds": 1} if trigger == "interval" else {"second": "*"}
    scheduler.add_job(job, args=[Path(sys.argv[1])], trigger=trigger, id="job", **options)


if __name__ == "__main__":
    asyncio.run(process.run(get_settings(), drain=2, setup=setup))
