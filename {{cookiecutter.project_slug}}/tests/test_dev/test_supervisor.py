import signal
import sys
from pathlib import Path

import pytest

from dev.supervisor import COMMAND_NOT_STARTED, supervised
from tests.test_dev.processes import LIMIT, end, eventually, is_running, owner, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the commands need a POSIX shell"),
]

SLEEP = ["sh", "-c", 'echo $$ > "$0"; exec sleep 600']
OWNER = """
import time
from dev.supervisor import supervised
pid, left, *command = sys.argv[1:]
with supervised([*command, pid], remove=[Path(left)], stop_timeout=5):
    time.sleep(600)
"""


def written(path: Path) -> int:
    eventually(lambda: path.exists() and path.read_text(), f"a process id in {path.name}")
    return int(path.read_text())


def test_end_of_the_block_sends_the_signal_and_removes_the_paths(
    tmp_path: Path,
) -> None:
    folder, ready, signalled = tmp_path / "folder", tmp_path / "ready", tmp_path / "signalled"
    folder.mkdir()
    script = 'trap "echo yes > $1; exit" INT; echo $$ > "$0"; while :; do sleep 0.01; done'
    command = ["sh", "-c", script, ready, signalled]
    with supervised(command, stop_signal=signal.SIGINT, remove=[folder]):
        pid = written(ready)
    assert not is_running(pid)
    assert signalled.read_text() == "yes\n"
    assert not folder.exists()


def test_command_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    script = 'trap "" TERM; echo $$ > "$0"; while :; do sleep 0.01; done'
    with supervised(["sh", "-c", script, tmp_path / "ready"], stop_timeout=0.1) as process:
        pid = written(tmp_path / "ready")
    assert not is_running(pid)
    assert process.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -9 $$"], 128 + signal.SIGKILL),
        (["/no/such"], COMMAND_NOT_STARTED),
    ],
)
def test_status_of_the_command_is_returned(command: list[str], status: int, tmp_path: Path) -> None:
    """If the command exits by itself, no paths are removed."""
    with supervised(command, remove=[tmp_path]) as process:
        assert process.wait(LIMIT) == status
    assert tmp_path.exists()


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_command_stops_when_its_owner_is_killed(tmp_path: Path, death: signal.Signals) -> None:
    ready, left = tmp_path / "ready", tmp_path / "left"
    left.touch()
    with owner(OWNER, ready, left, *SLEEP) as process:
        pid = written(ready)
        end(process, death)
        wait_until_gone(pid)
        eventually(lambda: not left.exists(), "removal of the file")


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG of Linux")
def test_command_stops_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    with supervised([*SLEEP, tmp_path / "ready"]) as process:
        pid = written(tmp_path / "ready")
        process.kill()
        wait_until_gone(pid)


def test_children_of_a_killed_command_are_killed_too(tmp_path: Path) -> None:
    """A child of a killed reloader would otherwise still use the port."""
    script = 'sleep 600 & echo $! > "$0"; kill -9 $$'
    with supervised(["sh", "-c", script, tmp_path / "ready"]) as process:
        process.wait(LIMIT)
        wait_until_gone(written(tmp_path / "ready"))
