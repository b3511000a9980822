"""The command line. Servers run as processes, as users run them."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import httpx
import pytest
from sqlalchemy import make_url

import cli
from src.core.config import ROOT, get_settings
from src.db.setup import drop_database
from tests.fixtures.database import TEMPLATE_URL
from tests.leash import Leash

LIMIT = 60.0  # seconds
UNREACHABLE = "postgresql://me:hunter2@127.0.0.1:1/app"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `cli.py` with arguments and variables, in this process: imports take a second."""

    def run(*arguments: str, **variables: str) -> Outcome:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        get_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        # `sys.exit` with a message has the interpreter print it and end with 1.
        code = ended.value.code
        if isinstance(code, str):
            return Outcome(1, captured.out, captured.err + code)
        return Outcome(code or 0, captured.out, captured.err)

    yield run
    monkeypatch.undo()
    get_settings.cache_clear()
    logging.getLogger().handlers = []


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@contextmanager
def serving(*flags: str, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a server, then send SIGTERM; yield the process and its address."""
    port = free_port()
    with TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "cli.py", "api", "--port", port, *flags],
            cwd=ROOT,
            env=os.environ | {"LOG_LEVEL": "INFO", "PORT": "1"} | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        leash = Leash(process.pid)
        try:
            _wait_for_log(process, log, b"Application startup complete")
            yield process, f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT)
        finally:
            leash.pull()
            process.wait()


def _wait_for_log(process: subprocess.Popen[bytes], log: IO[bytes], words: bytes) -> None:
    deadline = time.monotonic() + LIMIT
    while words not in (written := os.pread(log.fileno(), 1_000_000, 0)):
        assert process.poll() is None, written.decode()
        assert time.monotonic() < deadline, written.decode()
        time.sleep(0.02)


@pytest.mark.parametrize("command", ["", "api", "db", "db migrate", "db revision", "dev"])
def test_every_command_has_help(run: Run, command: str) -> None:
    result = run(*command.split(), "--help")

    assert result.status == 0
    assert "Usage: cli.py" in result.out


@pytest.mark.slow
def test_api_listens_on_the_given_port_and_stops_cleanly() -> None:
    with serving() as (process, address):
        response = httpx.get(f"{address}/api/v1/health/live", timeout=LIMIT)

    assert response.status_code == 200
    assert process.returncode == -signal.SIGTERM  # uvicorn stops in order, then passes it on


@pytest.mark.slow
def test_workers_report_their_metrics_together() -> None:
    with serving("--workers", "2") as (_, address):
        httpx.get(f"{address}/api/v1/health/live", timeout=LIMIT)
        for _ in range(20):  # each is a new connection, to any worker
            metrics = httpx.get(f"{address}/metrics", timeout=LIMIT).text
            assert 'route="/api/v1/health/live",status="200"} 1.0' in metrics


def test_reload_and_workers_exclude_each_other(run: Run) -> None:
    result = run("api", "--reload", "--workers", "2")

    assert result.status == 2
    assert "either --reload or --workers" in result.err


@pytest.mark.parametrize("command", ["api", "db migrate"])
def test_production_does_not_start_on_defaults(run: Run, command: str) -> None:
    result = run(*command.split(), ENV="production", DEBUG="true")

    assert result.status == 1
    for fault in ("DEBUG", "POSTGRES_PASSWORD", "API_KEYS"):
        assert fault in result.err


@pytest.mark.slow
def test_production_does_not_start_on_defaults_under_uvicorn() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app"],
        cwd=ROOT,
        env=os.environ | {"ENV": "production"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert result.returncode == 1
    assert "API_KEYS must hold" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["migrate", "downgrade", "init"])
def test_an_unreachable_database_is_one_sentence(run: Run, command: str) -> None:
    result = run("db", command, DATABASE_URL=UNREACHABLE)

    assert result.status == 1
    assert "Error: PostgreSQL at 127.0.0.1:1" in result.err
    assert "hunter2" not in result.err


def test_an_unknown_revision_is_one_sentence(run: Run) -> None:
    result = run("db", "migrate", "--revision", "nowhere", DATABASE_URL=os.environ[TEMPLATE_URL])

    assert result.status == 1
    assert "Error: Can't locate revision identified by 'nowhere'" in result.err


def test_init_creates_the_database_and_migrates(run: Run) -> None:
    template = make_url(os.environ[TEMPLATE_URL])
    name = f"{template.database}_init"
    url = template.set(database=name)
    text = url.render_as_string(hide_password=False)

    first, second = run("db", "init", DATABASE_URL=text), run("db", "init", DATABASE_URL=text)
    asyncio.run(drop_database(url))

    assert f"Database {name} created." in first.out
    assert f"Database {name} exists." in second.out
    assert (first.status, second.status) == (0, 0)
