"""`python cli.py dev`."""

import signal
import socket
import sys
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from dev import stack
from dev.server import free_port, locked
from src.core import config
from src.core.config import Settings
from tests.fixtures.client import HEADERS
from tests.fixtures.environment import API
from tests.test_dev.processes import (
    LIMIT,
    end,
    eventually,
    is_running,
    name_other_servers,
    owner,
    pid_of_postgres,
    wait_until_gone,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

STACK = """
from dev import stack
folder = Path(sys.argv[1])
stack.DATA, stack.DEV_ENV_FILE = folder, folder / "dev.env"
"""
WAITING_STACK = f"""{STACK}
from tests.test_dev.test_stack import waiting
stack.upgrade = lambda *_: None
sys.exit(stack.run_stack(waiting(folder / "program")))
"""
# It writes its process ID and its DATABASE_URL to a file.
WAITING = """
import os, sys, time
print("hello")
with open(sys.argv[1], "w") as file:
    print(os.getpid(), os.environ["DATABASE_URL"], file=file)
time.sleep(600)
"""
ENDING = """
import sys
from tests.test_dev.test_stack import Path, read
read(Path(sys.argv[1]))
sys.exit(7)
"""


def waiting(path: Path) -> dict[str, tuple[str, ...]]:
    return {"waiting": ("-c", WAITING, str(path))}


def read(path: Path) -> tuple[int, str]:
    eventually(lambda: path.exists() and path.read_text().endswith("\n"), str(path))
    pid, url = path.read_text().split()
    return int(pid), url


def responds(url: str) -> bool:
    try:
        return httpx.get(url, headers=HEADERS, timeout=LIMIT).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(autouse=True)
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port for a `dev` that starts no server but PostgreSQL."""
    name_other_servers(monkeypatch)
    port = free_port()
    monkeypatch.setenv("HOST", "127.0.0.1")
    monkeypatch.setenv("PORT", str(port))
    return port


@pytest.mark.slow
def test_dev_serves_the_api_until_ctrl_c(tmp_path: Path, port: int) -> None:
    with owner(STACK + "sys.exit(stack.run_stack())", tmp_path) as dev:
        url = f"http://127.0.0.1:{port}{API}/health/ready"
        eventually(lambda: responds(url), f"a response from {url}")
        pid = pid_of_postgres(tmp_path / "postgres")
        assert (tmp_path / "dev.env").stat().st_mode & 0o777 == 0o600
        assert end(dev, signal.SIGINT) == 0
        assert not responds(url)
        assert not (tmp_path / "dev.env").exists()
        wait_until_gone(pid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_nothing_outlives_dev(
    tmp_path: Path, cluster: Path, death: signal.Signals, status: int
) -> None:
    (tmp_path / "postgres").symlink_to(cluster)
    with owner(WAITING_STACK, tmp_path) as dev:
        program, url = read(tmp_path / "program")
        server = pid_of_postgres(cluster)
        assert f"DATABASE_URL={url}\n" in (tmp_path / "dev.env").read_text()
        assert end(dev, death) == status
        wait_until_gone(program)
        wait_until_gone(server)
        eventually(lambda: not (tmp_path / "dev.env").exists(), "removal of dev.env")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "status"), [(signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_interrupted_start_leaves_nothing_behind(
    tmp_path: Path, death: signal.Signals, status: int
) -> None:
    with owner(WAITING_STACK, tmp_path) as dev:
        eventually(lambda: any(tmp_path.glob("postgres-*/PG_VERSION")), "an incomplete cluster")
        assert end(dev, death) == status
        eventually(lambda: not any(tmp_path.iterdir()), "its removal")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for a stack that runs in this process."""
    monkeypatch.setattr(stack, "DATA", tmp_path)
    monkeypatch.setattr(stack, "DEV_ENV_FILE", tmp_path / "dev.env")
    monkeypatch.setattr(stack, "upgrade", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


def test_second_dev_fails_without_changes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "dev.env").touch()
    with locked(here):
        assert stack.run_stack(waiting(here / "program")) == 1
    assert f"{here} is already in use by another process" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["dev.env"]


def test_port_in_use_is_reported_before_anything_starts(
    here: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        assert stack.run_stack(waiting(here / "program")) == 1
    assert f"Port {port} on 127.0.0.1 is already in use" in capsys.readouterr().err
    assert not any(here.iterdir())


def test_dev_ends_with_the_status_of_a_program_that_exits(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The settings name a server, so none is started. Each line has the program's name."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@nowhere/app")
    path = here / "program"
    assert stack.run_stack(waiting(path) | {"seven": ("-c", ENDING, str(path))}) == 7
    output = capsysbinary.readouterr()
    assert b"waiting | hello\n" in output.out
    assert b"seven exited with status 7." in output.err
    program, url = read(path)
    assert url.startswith("postgresql+asyncpg://me:secret@nowhere/app?")
    assert not is_running(program)
    assert not {"postgres", "dev.env"} & {path.name for path in here.iterdir()}


def test_file_of_an_earlier_dev_is_ignored(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure the file exists, but its server does not."""
    (here / "dev.env").write_text("DATABASE_URL=postgresql://gone/app\n")
    monkeypatch.delenv("ENV_FILE")
    monkeypatch.setattr(config, "ROOT", here)
    monkeypatch.setattr(config, "DEV_ENV_FILE", here / "dev.env")
    ours = stack.SERVERS[0]._replace(start=lambda *_: nullcontext("postgresql://ours/app"))
    monkeypatch.setattr(stack, "SERVERS", [ours])
    program = ("-c", "import os; exit('ours' in os.environ['DATABASE_URL'])")
    assert stack.run_stack({"program": program}) == 1


@pytest.mark.usefixtures("here")
def test_dev_refuses_to_run_in_staging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    staging = Settings.model_construct(ENV="staging")
    monkeypatch.setattr(stack, "load_settings", lambda **_: staging)
    assert stack.run_stack() == 1
    assert capsys.readouterr().err == "`dev` is only for development, but ENV is staging.\n"
