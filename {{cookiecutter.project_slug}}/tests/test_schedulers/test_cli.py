"""`python cli.py scheduler`, and how to enable or disable the scheduler."""

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import uvicorn
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy import URL

from dev import stack
from src.core.config import Settings, get_settings
from src.db.models.scheduler import SchedulerJob, SchedulerRun
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.repositories.scheduler import SchedulerRepository
from src.schedulers.engine import process
from tests.fixtures.commands import Run, free_port, running


@pytest.mark.parametrize(
    ("given", "enabled"),  # the flag, the variable, and the line of `.env`
    [
        (("", "", ""), Settings.model_fields["SCHEDULER_ENABLED"].default),
        (("", "", "false"), False),
        (("", "true", "false"), True),
        (("", "false", "true"), False),
        (("enabled", "false", "false"), True),
        (("disabled", "true", "true"), False),
    ],
)
@pytest.mark.parametrize("command", ["api", "scheduler"])
def test_flag_overrides_environment_overrides_file(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    given: tuple[str, str, str],
    *,
    enabled: bool,
) -> None:
    """Child processes of --workers and --reload inherit the flag through the environment."""

    async def schedule(settings: Settings, **_: object) -> None:
        assert settings.SCHEDULER_ENABLED

    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: None)
    monkeypatch.setattr(process, "run", schedule)
    flag, variable, line = given
    prefix = {"api": "--scheduler-", "scheduler": "--"}[command]
    (tmp_path / "env").write_text(f"SCHEDULER_ENABLED={line}\n")
    flags = [prefix + flag] if flag else []
    result = run(command, *flags, ENV_FILE=str(tmp_path / "env"), SCHEDULER_ENABLED=variable)

    assert result.status == 0
    assert get_settings().SCHEDULER_ENABLED is enabled
    if flag:
        assert os.environ["SCHEDULER_ENABLED"] == str(enabled).lower()


def test_disabled_scheduler_prints_a_message_and_exits(run: Run) -> None:
    result = run("scheduler", SCHEDULER_ENABLED="false")

    assert result.status == 0
    assert "The scheduler is disabled" in result.err


@pytest.mark.parametrize("command", [["api", "--workers", "2"], ["scheduler"]])
def test_invalid_job_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def setup(scheduler: AsyncIOScheduler) -> None:
        scheduler.add_job(print, trigger="interval", hours=1, id="job")

    monkeypatch.setattr("src.schedulers.jobs.setup_jobs", setup)
    result = run(*command, SCHEDULER_ENABLED="true")

    assert result.status == 1
    assert result.err.endswith("Error: The job job must be an `async def` function.")


async def test_jobs_are_listed(
    run: Run, committing_database: Database, committing_url: URL
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    result = await asyncio.to_thread(run, "scheduler", "jobs", DATABASE_URL=url)
    assert (result.status, result.out) == (0, "No leader.\n")

    now = datetime.now(UTC)
    failed = {"holder": "x", "outcome": RunOutcome.FAILED, "error": "ValueError: no"}
    async with committing_database.transaction() as session:
        await SchedulerRepository(session).acquire_lease("web-1:7:1f3c9a52", seconds=60)
        session.add(SchedulerJob(id="job", trigger="interval[1:00:00]", next_tick=now))
        session.add(SchedulerRun(job="job", tick=now, started_at=now, **failed))
    result = await asyncio.to_thread(run, "scheduler", "jobs", DATABASE_URL=url)

    assert "Leader: web-1:7:1f3c9a52, since " in result.out
    assert f"job  interval[1:00:00]  next: {now.isoformat(timespec='seconds')}" in result.out
    assert "failed     finished: -  ValueError: no" in result.out


def test_dev_runs_the_scheduler_unless_it_is_disabled() -> None:
    on = stack.default_programs(Settings(ENV="test", SCHEDULER_ENABLED=True))
    off = stack.default_programs(Settings(ENV="test", SCHEDULER_ENABLED=False))

    assert set(on) - set(off) == {"scheduler"}
    assert "--scheduler-disabled" in on["api"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_process_becomes_leader_and_serves_metrics_until_stopped(committing_url: URL) -> None:
    port = free_port()
    url = committing_url.render_as_string(hide_password=False)
    flags = ["--enabled", "--metrics-port", port]
    with running("scheduler", *flags, until="leadership_acquired", DATABASE_URL=url) as process:
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text

    assert "scheduler_leader 1.0" in metrics
    assert process.returncode == 0
