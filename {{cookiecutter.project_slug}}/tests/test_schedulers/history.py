"""What the scheduler has recorded, and waiting for it."""

import asyncio
from collections.abc import Callable, Sequence

from src.db.models.scheduler import SchedulerRun
from src.db.session import Database
from src.services.scheduler import Overview, SchedulerService

LIMIT_SECONDS = 60


async def overview(database: Database) -> Overview:
    async with database.reads() as session:
        return await SchedulerService.overview(session, runs=100)


async def runs_of(database: Database, *, count: int = 1) -> Sequence[SchedulerRun]:
    """Wait until so many runs of `job` have finished; return its runs, newest first."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            jobs = {job.id: job for job in (await overview(database)).jobs}
            runs = jobs["job"].runs if "job" in jobs else []
            if len([run for run in runs if run.finished_at]) >= count:
                return runs
            await asyncio.sleep(0.02)


async def leader_of(database: Database) -> str:
    """Wait until a leader has run `job`; return its name."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            shown = await overview(database)
            if shown.leader is not None and any(job.runs for job in shown.jobs):
                return shown.leader.holder
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)
