"""`python cli.py scheduler`, and the switches: a flag wins over the environment, that over `.env`."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn
from pydantic import SecretStr
from sqlalchemy import URL

import cli
from dev import stack
from src.core.config import ROOT, Settings, get_settings
from src.db.models.scheduler import SchedulerJob, SchedulerRun
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.repositories.scheduler import SchedulerRepository
from src.schedulers import cli as scheduler_cli
from src.schedulers.engine import process
from tests.leash import Leash
from tests.test_schedulers.history import LIMIT_SECONDS, until

Call = Callable[..., int | str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """Run `cli.py` here, with these lines in `.env` and these variables; nothing is served."""
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: None)
    for module in (cli, scheduler_cli):
        monkeypatch.setattr(module, "configure_logging", lambda _: None)
    monkeypatch.setenv("SCHEDULER_ENABLED", "")  # so that it is restored

    def call(*arguments: str, env_file: str = "", **variables: str) -> int | str:
        (tmp_path / "env").write_text(env_file)
        monkeypatch.setenv("ENV_FILE", str(tmp_path / "env"))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        get_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0

    yield call
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("given", "enabled"),  # the flag, the variable, and the line of `.env`
    [
        (("", "", ""), True),
        (("", "", "false"), False),
        (("", "true", "false"), True),
        (("", "false", "true"), False),
        (("enabled", "false", "false"), True),
        (("disabled", "true", "true"), False),
    ],
)
@pytest.mark.parametrize("command", ["api", "scheduler"])
def test_flag_environment_and_file_in_this_order(
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    given: tuple[str, str, str],
    *,
    enabled: bool,
) -> None:
    """Child processes, of --workers and --reload, inherit the environment and so the flag."""

    async def run(settings: Settings, **_: object) -> None:
        assert settings.SCHEDULER_ENABLED

    monkeypatch.setattr(process, "run", run)
    flag, variable, line = given
    prefix = {"api": "--scheduler-", "scheduler": "--"}[command]
    status = call(
        command,
        *([prefix + flag] if flag else []),
        env_file=f"SCHEDULER_ENABLED={line}\n" if line else "",
        SCHEDULER_ENABLED=variable,
    )

    assert status == 0
    assert get_settings().SCHEDULER_ENABLED is enabled
    if flag:
        assert os.environ["SCHEDULER_ENABLED"] == str(enabled).lower()


def test_a_disabled_scheduler_says_so_and_ends(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("scheduler", "--disabled") == 0
    assert "The scheduler is disabled" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["scheduler"], ["scheduler", "jobs"]])
def test_help(call: Call, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert call(*command, "--help") == 0
    assert f"Usage: cli.py {' '.join(command)}" in capsys.readouterr().out


async def test_jobs_are_listed(
    committing_database: Database,
    committing_url: URL,
    call: Call,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    assert await asyncio.to_thread(call, "scheduler", "jobs", DATABASE_URL=url) == 0
    assert capsys.readouterr().out == "No leader.\n"

    now = datetime.now(UTC)
    run = {"holder": "x", "outcome": RunOutcome.FAILED, "error": "ValueError: no"}
    async with committing_database.transaction() as session:
        await SchedulerRepository(session).acquire_lease("web-1:7:1f3c9a52", seconds=60)
        session.add(SchedulerJob(id="job", trigger="interval[1:00:00]", next_tick=now))
        session.add(SchedulerRun(job="job", tick=now, started_at=now, **run))
    assert await asyncio.to_thread(call, "scheduler", "jobs", DATABASE_URL=url) == 0
    output = capsys.readouterr().out

    assert "Leader: web-1:7:1f3c9a52, since " in output
    assert f"job  interval[1:00:00]  next: {now.isoformat(timespec='seconds')}" in output
    assert "failed     finished: -  ValueError: no" in output


def test_dev_runs_it_beside_the_api_unless_it_is_disabled() -> None:
    on = stack.default_programs(Settings(ENV="test"))
    off = stack.default_programs(Settings(ENV="test", SCHEDULER_ENABLED=False))

    assert set(on) - set(off) == {"scheduler"}
    assert "--scheduler-disabled" in on["api"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
async def test_the_process_leads_until_it_is_stopped(committing_url: URL) -> None:
    """With the jobs of the service."""
    url = committing_url.render_as_string(hide_password=False)
    running = await asyncio.create_subprocess_exec(
        sys.executable, "cli.py", "scheduler",
        cwd=ROOT, env=os.environ | {"DATABASE_URL": url, "LOG_LEVEL": "INFO"},
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert running.stderr is not None
    leash = Leash(running.pid)
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            async for line in running.stderr:
                if b"leadership_acquired" in line:
                    break
            running.send_signal(signal.SIGTERM)
            _, output = await running.communicate()
    finally:
        leash.pull()

    assert running.returncode == 0
    assert b"scheduler_stopped" in output


async def test_a_signal_ends_it(committing_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it serves its metrics, if a port is given."""
    handlers: dict[int, Callable[..., None]] = {}
    served: list[int] = []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(process, "start_http_server", served.append)
    url = SecretStr(committing_url.render_as_string(hide_password=False))
    settings = Settings(ENV="test", DATABASE_URL=url)
    running = asyncio.create_task(
        process.run(settings, drain=1, metrics_port=9000, setup=lambda _: None)
    )
    await until(lambda: served)
    handlers[signal.SIGTERM](signal.SIGTERM, None)

    async with asyncio.timeout(LIMIT_SECONDS):
        await running
    assert served == [9000]
