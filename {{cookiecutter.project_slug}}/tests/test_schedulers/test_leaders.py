"""Three processes and a one-second job: whatever befalls the leader, no tick runs twice."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from sqlalchemy import URL, text

from src.core.config import ROOT
from src.db.session import Database, open_database
from src.services.scheduler import SchedulerService
from tests.leash import Leash
from tests.proxy import Proxy
from tests.test_cli import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's"),
]

PATIENCE = 60.0


class Line(NamedTuple):
    tick: str
    pid: int


@dataclass
class Fleet:
    """Processes that schedule, and what their job has written."""

    file: Path
    database: Database
    processes: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    leashes: dict[int, Leash] = field(default_factory=dict)

    async def start(self, url: URL, **variables: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.test_schedulers.ticking", self.file,
            cwd=ROOT,
            env=os.environ
            | {"DATABASE_URL": url.render_as_string(hide_password=False), "LOG_LEVEL": "INFO"}
            | variables,
            start_new_session=True,
        )  # fmt: skip
        self.processes[process.pid] = process
        self.leashes[process.pid] = Leash(process.pid)
        return process.pid

    def lines(self) -> list[Line]:
        if not self.file.exists():
            return []
        return [Line(*json.loads(line)) for line in self.file.read_text("utf-8").splitlines()]

    async def leader(self) -> int:
        async with self.database.reads() as session:
            lease = (await SchedulerService.overview(session, runs=0)).leader
        return int(lease.holder.split(":")[1]) if lease else 0

    async def runs_elsewhere(self, pid: int) -> None:
        """Wait until another process than `pid` runs the job, more than once."""
        await until(lambda: len([e for e in self.lines()[-3:] if e.pid != pid]) == 3)

    def assert_each_once(self) -> None:
        lines = self.lines()
        twice = {tick: n for tick, n in Counter(line.tick for line in lines).items() if n > 1}
        assert twice == {}


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.fixture
async def fleet(tmp_path: Path, fresh_url: URL) -> AsyncGenerator[Fleet]:
    async with open_database(fresh_url, pool_size=1) as database:
        fleet = Fleet(tmp_path / "ticks", database)
        try:
            yield fleet
        finally:
            for leash in fleet.leashes.values():
                leash.pull()
            for process in fleet.processes.values():
                await process.wait()


async def test_a_leader_that_is_killed_is_replaced(fleet: Fleet, fresh_url: URL) -> None:
    """Each time; what it ran when it died is marked as lost."""
    for _ in range(3):
        await fleet.start(fresh_url)
    for _ in range(2):
        await until(lambda: len(fleet.lines()) % 5 == 4)
        leader = await fleet.leader()
        fleet.processes[leader].send_signal(signal.SIGKILL)
        await fleet.runs_elsewhere(leader)
    fleet.assert_each_once()


async def test_a_leader_that_freezes_is_replaced_and_repeats_nothing(
    fleet: Fleet, fresh_url: URL
) -> None:
    """When it wakes up it finds the lead lost and the ticks taken."""
    for _ in range(3):
        await fleet.start(fresh_url)
    await until(lambda: len(fleet.lines()) >= 3)
    leader = await fleet.leader()
    fleet.processes[leader].send_signal(signal.SIGSTOP)
    await fleet.runs_elsewhere(leader)
    fleet.processes[leader].send_signal(signal.SIGCONT)
    runs = len(fleet.lines())
    await until(lambda: len(fleet.lines()) >= runs + 4)
    assert {line.pid for line in fleet.lines()[runs + 1 :]} == {await fleet.leader()}
    fleet.assert_each_once()


@pytest.mark.parametrize("fault", ["cut", "hang"])
async def test_a_leader_that_is_cut_off_is_replaced(
    fleet: Fleet, fresh_url: URL, fault: str
) -> None:
    """Its database is gone, or does not answer: it stops by itself, and stands by later."""
    proxy = Proxy(fresh_url)
    await proxy.start()
    first = await fleet.start(proxy.url)
    await until(lambda: len(fleet.lines()) >= 2)
    await fleet.start(fresh_url)
    if fault == "cut":
        await proxy.stop()
    else:
        proxy.freeze()
    await fleet.runs_elsewhere(first)
    fleet.assert_each_once()
    await proxy.stop()


async def test_a_leader_that_is_told_to_stop_makes_room_at_once(
    fleet: Fleet, fresh_url: URL
) -> None:
    """It gives the lease back: the next one does not wait for its end, which is far away here."""
    for _ in range(2):
        await fleet.start(fresh_url, TEST_LEASE_SECONDS="3600")
    await until(lambda: len(fleet.lines()) >= 2)
    leader = await fleet.leader()
    fleet.processes[leader].send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        assert await fleet.processes[leader].wait() == 0
    await fleet.runs_elsewhere(leader)


async def test_an_outage_of_the_database_is_waited_for(fleet: Fleet, fresh_url: URL) -> None:
    """All processes lose it; they go on by themselves when it is back."""
    proxy = Proxy(fresh_url)
    await proxy.start()
    for _ in range(2):
        await fleet.start(proxy.url)
    await until(lambda: len(fleet.lines()) >= 2)
    await proxy.stop()
    await asyncio.sleep(8)
    runs = len(fleet.lines())
    await proxy.start()
    await until(lambda: len(fleet.lines()) >= runs + 3)
    assert len({line.tick for line in fleet.lines()}) == len(fleet.lines())
    # What was claimed as the line was cut was not run, and is lost.
    recorded = text("SELECT count(*) FROM scheduler_run WHERE outcome <> 'lost'")
    async with asyncio.timeout(PATIENCE), fleet.database.reads() as session:
        while await session.scalar(recorded) != len(fleet.lines()):  # noqa: ASYNC110 - others write them
            await asyncio.sleep(0.05)
    await proxy.stop()


async def test_of_the_workers_of_the_api_one_leads(fresh_url: URL, fleet: Fleet) -> None:
    """Each has it on; any of them tells, in the metrics too."""
    url = fresh_url.render_as_string(hide_password=False)
    with serving("--workers", "2", DATABASE_URL=url) as (process, address):
        async with (
            asyncio.timeout(PATIENCE),
            httpx.AsyncClient(base_url=address, timeout=PATIENCE) as client,
        ):
            while "scheduler_leader 1.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110 - it is far away
                await asyncio.sleep(0.05)
            shown = (await client.get("/api/v1/scheduler/jobs")).json()

    assert shown["jobs"][0]["id"] == "archive_stale_items"
    assert int(shown["leader"]["holder"].split(":")[1]) != process.pid
    assert await fleet.leader() == 0  # it has given the lease back
