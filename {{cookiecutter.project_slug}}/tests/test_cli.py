"""The command line."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
import uvicorn
from sqlalchemy import URL, make_url

from src.core.config import ROOT
from src.db.setup import drop_database
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT, Run, free_port, serving
from tests.fixtures.database import TEMPLATE_URL
from tests.fixtures.environment import API

UNREACHABLE = "postgresql://me:hunter2@127.0.0.1:1/app"


@pytest.mark.parametrize("command", ["", "api", "db", "db migrate", "db revision", "dev", "doctor"])
def test_every_command_has_help(run: Run, command: str) -> None:
    result = run(*command.split(), "--help")

    assert result.status == 0
    assert "Usage: cli.py" in result.out


@pytest.mark.slow
def test_api_listens_on_the_given_port_and_stops_cleanly() -> None:
    with serving() as (process, address):
        response = httpx.get(f"{address}{API}/health/live", headers=HEADERS, timeout=LIMIT)

    assert response.status_code == 200
    assert process.returncode == -signal.SIGTERM  # raised again after a graceful stop


@pytest.mark.slow
def test_metrics_include_all_workers() -> None:
    with serving("--workers", "2") as (_, address):
        httpx.get(f"{address}{API}/health/live", headers=HEADERS, timeout=LIMIT)
        for _ in range(20):  # each is a new connection to a random worker
            metrics = httpx.get(f"{address}/metrics", headers=HEADERS, timeout=LIMIT).text
            assert f'route="{API}/health/live",status="200"}} 1.0' in metrics


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_metrics_can_have_a_separate_port(workers: str) -> None:
    port = free_port()
    with serving("--workers", workers, HOST="127.0.0.1", METRICS_PORT=port) as (_, address):
        response = httpx.get(f"{address}/metrics", headers=HEADERS, timeout=LIMIT)
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT).text

    assert response.status_code == 404
    assert 'route="unmatched",status="404"} 1.0' in metrics


def test_a_port_in_use_is_reported(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        result = run("api", "--port", "0", HOST="127.0.0.1", METRICS_PORT=port)

    assert f"METRICS_PORT: cannot listen on 127.0.0.1:{port}" in result.err


@pytest.mark.parametrize("flags", [(), ("--workers", "2"), ("--port", "9000")])
def test_metrics_need_another_port_than_the_api(run: Run, flags: tuple[str, ...]) -> None:
    port = flags[1] if "--port" in flags else "8000"
    result = run("api", *flags, METRICS_PORT=port)

    assert f"METRICS_PORT and PORT are both {port}" in result.err


def test_reload_does_not_wait_for_open_streams(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, object] = {}
    monkeypatch.setattr(uvicorn, "run", lambda *_, **given: options.update(given))

    assert run("api", "--reload").status == 0
    assert options["timeout_graceful_shutdown"] == 1


def test_reload_and_workers_cannot_be_combined(run: Run) -> None:
    result = run("api", "--reload", "--workers", "2")

    assert result.status == 2
    assert "either --reload or --workers, not both" in result.err


@pytest.mark.parametrize("command", ["api", "db migrate"])
def test_production_does_not_start_on_defaults(run: Run, command: str) -> None:
    result = run(*command.split(), ENV="production", DEBUG="true")

    assert result.status == 1
    for fault in ("DEBUG", "POSTGRES_PASSWORD"):
        assert fault in result.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"ENV": "production"}, "POSTGRES_PASSWORD"),
        ({"METRICS_PORT": "8000"}, "METRICS_PORT and PORT are both 8000"),
    ],
)
def test_invalid_settings_end_uvicorn(variables: dict[str, str], error: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert result.returncode == 1
    assert error in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["migrate", "downgrade", "init"])
def test_an_unreachable_database_is_reported_in_one_sentence(run: Run, command: str) -> None:
    result = run("db", command, DATABASE_URL=UNREACHABLE)

    assert result.status == 1
    assert "Error: PostgreSQL at 127.0.0.1:1" in result.err
    assert "hunter2" not in result.err


def test_an_unknown_revision_is_reported_in_one_sentence(run: Run, committing_url: URL) -> None:
    url = committing_url.render_as_string(hide_password=False)

    result = run("db", "migrate", "--revision", "nowhere", DATABASE_URL=url)

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
    assert f"Database {name} already exists." in second.out
    assert (first.status, second.status) == (0, 0)
