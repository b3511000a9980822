import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pydantic import SecretStr
from sqlalchemy import URL
from structlog.testing import capture_logs

from src.core import failures
from src.core.config import Settings
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.schedulers.engine import executor, leadership, store
from src.schedulers.scheduler import open_scheduler
from src.schemas.scheduler import Run, SchedulerInfo
from src.services.scheduler import SchedulerService

LIMIT_SECONDS = 60
Schedule = Callable[..., AbstractAsyncContextManager[None]]
Logs = list[MutableMapping[str, Any]]


@pytest.fixture(autouse=True)
def _stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent a lost lease on a busy machine, and let the scheduler poll more often."""
    monkeypatch.setattr(leadership, "LEASE_SECONDS", 2.0 * LIMIT_SECONDS)
    monkeypatch.setattr(store, "RESPONSE_SECONDS", LIMIT_SECONDS)
    monkeypatch.setattr(executor, "RECORD_SECONDS", LIMIT_SECONDS)
    monkeypatch.setattr(leadership, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.05)


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Logs]:
    for module in (executor, failures, leadership):  # their loggers may be bound to an earlier test
        monkeypatch.setattr(module, "log", structlog.get_logger())
    with capture_logs() as logs:
        yield logs


@pytest.fixture
def schedule(committing_url: URL, committing_database: Database) -> Schedule:
    """Run one job until the block ends. By default it runs now, and then every hour."""

    @asynccontextmanager
    async def schedule(
        job: Callable[..., object], *, url: URL = committing_url, drain: float = 1, **options: Any
    ) -> AsyncGenerator[None]:
        if "trigger" not in options:
            options = {"trigger": "interval", "hours": 1} | options
        options = {"id": "job", "next_run_time": datetime.now(UTC)} | options
        settings = Settings(
            ENV="test", DATABASE_URL=SecretStr(url.render_as_string(hide_password=False))
        )

        def setup(scheduler: AsyncIOScheduler) -> None:
            scheduler.add_job(job, **options)

        async with open_scheduler(settings, committing_database, setup=setup, drain=drain):
            yield

    return schedule


async def overview(database: Database) -> SchedulerInfo:
    async with database.reads() as session:
        return await SchedulerService.overview(session, runs=100)


async def runs_of(
    database: Database, *, count: int = 1, outcome: RunOutcome | None = None
) -> Sequence[Run]:
    """Wait until `count` runs of `job` have finished, with the outcome if one is given.

    Return all its runs, or those with the outcome, newest first.
    """
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            jobs = (await overview(database)).jobs
            runs = [run for job in jobs if job.id == "job" for run in job.runs]
            runs = [run for run in runs if outcome in {None, run.outcome}]
            if len([run for run in runs if run.finished_at]) >= count:
                return runs
            await asyncio.sleep(0.02)


async def leader_of(database: Database) -> str:
    """Wait until a leader has claimed a run. Return its name."""
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
