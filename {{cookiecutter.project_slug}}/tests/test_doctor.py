"""`python cli.py doctor`. Tests of a feature's checks are with its other tests."""

import asyncio
import os
import shutil
import socket
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text

from src.core.config import ROOT
from src.db import doctor
from src.db.session import open_database
from tests.fixtures.commands import Outcome, Run, free_port, serving
from tests.fixtures.database import TEMPLATE_URL

SECRET = "hunter2"


@pytest.fixture
def url() -> str:
    return os.environ[TEMPLATE_URL]


def examine(run: Run, url: str | URL, **variables: str) -> Outcome:
    if isinstance(url, URL):
        url = url.render_as_string(hide_password=False)
    return run("doctor", **{"PORT": free_port(), "DATABASE_URL": url, **variables})


def line(outcome: Outcome, name: str) -> str:
    """Return the line of a check, with single spaces."""
    (found,) = [each for each in outcome.out.splitlines() if each.startswith(f"{name} ")]
    return " ".join(found.split())


def test_a_healthy_service_has_no_failed_check(run: Run, url: str) -> None:
    outcome = examine(run, url)

    assert line(outcome, "settings").startswith("settings ok ENV=test. Set: ")
    assert line(outcome, "database").startswith("database ok PostgreSQL ")
    assert line(outcome, "migrations").endswith(" are applied.")
    assert " is free." in line(outcome, "port")
    assert (outcome.status, outcome.err) == (0, "")


def test_servers_that_dev_starts_may_be_off(run: Run) -> None:
    outcome = run("doctor", ENV="development", PORT=free_port(), POSTGRES_PORT="1")

    assert "skipped Not running. `python cli.py dev` starts it." in line(outcome, "database")
    assert line(outcome, "migrations") == "migrations skipped It needs the database."
    assert outcome.status == 0


def test_all_invalid_settings_are_listed(run: Run) -> None:
    outcome = run(
        "doctor", PORT="many", DEBUG="maybe", DATABASE_URL=f"mysql://me:{SECRET}@here/app"
    )

    assert outcome.status == 1
    for name in ("PORT", "DEBUG", "DATABASE_URL"):
        assert f" {name}: " in outcome.out
    assert SECRET not in outcome.out


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"host": "127.0.0.1", "port": 1, "query": {}}, "is unavailable"),
        (
            {"database": "nowhere"},
            'database "nowhere" does not exist. Create it with `python cli.py',
        ),
        ({"username": "nobody", "password": SECRET}, "Correct DATABASE_URL, or POSTGRES_USER,"),
    ],
)
def test_a_database_without_access_is_explained(
    run: Run, url: str, changes: dict[str, Any], problem: str
) -> None:
    outcome = examine(run, make_url(url).set(**changes))

    assert outcome.status == 1
    assert problem in line(outcome, "database")
    assert SECRET not in outcome.out


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM alembic_version", "Run `python cli.py db migrate`."),
        ("UPDATE alembic_version SET version_num = 'deadbeef0000'", "Unknown migration deadbeef"),
        ("DROP TABLE idempotency_key", "All are applied, but tables are missing: idempotency_key."),
    ],
)
async def test_migrations_that_do_not_fit_are_explained(
    run: Run, fresh_url: URL, statement: str, problem: str
) -> None:
    async with open_database(fresh_url, pool_size=1) as database, database.transaction() as session:
        await session.execute(text(statement))
    outcome = await asyncio.to_thread(examine, run, fresh_url)

    assert outcome.status == 1
    assert problem in line(outcome, "migrations")


def test_two_heads_are_explained(
    run: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "alembic", tmp_path / "alembic")
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    (tmp_path / "alembic/versions/other.py").write_text('revision, down_revision = "other", None')
    monkeypatch.setattr(doctor, "ROOT", tmp_path)

    assert "`alembic merge heads -m merge`" in examine(run, url).out


def test_another_program_on_the_port_is_found(run: Run, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(10)

        def hang_up() -> None:
            other.accept()[0].close()

        closing = Thread(target=hang_up)
        closing.start()
        outcome = examine(run, url, PORT=str(other.getsockname()[1]))
        closing.join()

    assert outcome.status == 1
    assert "Cannot listen on " in line(outcome, "port")
    if shutil.which("lsof"):
        assert f"Process {os.getpid()} (" in line(outcome, "port")
    assert "Set another PORT, or stop that program." in line(outcome, "port")


def test_a_metrics_port_that_is_also_the_port_is_found(run: Run, url: str) -> None:
    port = free_port()
    outcome = examine(run, url, PORT=port, METRICS_PORT=port)

    assert "metrics port failed METRICS_PORT and PORT are equal." in line(outcome, "metrics port")


@pytest.mark.slow
def test_the_service_itself_on_the_port_is_no_failure(run: Run, url: str) -> None:
    with serving() as (_, address):
        port = address.rpartition(":")[2]
        own = examine(run, url, PORT=port)
        other = examine(run, url, PORT=port, PROJECT_NAME="Another service")

    assert line(own, "port") == f"port ok {port}: this service is running."
    assert "Cannot listen on" in line(other, "port")


@pytest.mark.slow
def test_a_server_that_does_not_respond_takes_five_seconds(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        outcome = examine(run, f"postgresql://me:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/app")

    assert time.monotonic() - started < 15
    assert "failed" in line(outcome, "database")
    assert SECRET not in outcome.out
