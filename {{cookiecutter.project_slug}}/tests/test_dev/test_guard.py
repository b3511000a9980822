"""Commands never outlive their owner."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dev.guard import COMMAND_NOT_STARTED, guarded
from src.core.config import ROOT
from tests.test_dev.processes import LIMIT, Owner, eventually, is_running, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the commands are for a shell"),
]

SLEEP = ["sh", "-c", 'echo $$ > "$0"; exec sleep 600']
OWNER = """
import time
from dev.guard import guarded
pid, left, *command = sys.argv[1:]
with guarded([*command, pid], remove=[Path(left)], limit=5) as guard:
    tell(guard.pid)
    time.sleep(600)
"""


def written(path: Path) -> int:
    eventually(lambda: path.exists() and path.read_text(), f"a process id in {path.name}")
    return int(path.read_text())


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 128 + signal.SIGKILL)]
)
def test_status_of_the_command_is_passed_on(script: str, status: int) -> None:
    with guarded(["sh", "-c", script]) as guard:
        assert guard.wait(LIMIT) == status


def test_command_that_cannot_be_started_is_named() -> None:
    with guarded(["/no/such/command"], output=subprocess.PIPE) as guard:
        assert guard.stdout is not None
        assert guard.stdout.read() == b"Cannot start /no/such/command: No such file or directory.\n"
        assert guard.wait(LIMIT) == COMMAND_NOT_STARTED


def test_leaving_the_block_sends_the_chosen_signal_and_removes_what_was_named(
    tmp_path: Path,
) -> None:
    folder, ready, said = tmp_path / "folder", tmp_path / "ready", tmp_path / "said"
    folder.mkdir()
    script = 'trap "echo asked > $1; exit" INT; echo $$ > "$0"; while :; do sleep 0.01; done'
    command = ["sh", "-c", script, str(ready), str(said)]
    with guarded(command, stop_signal=signal.SIGINT, remove=[folder]):
        pid = written(ready)
    assert not is_running(pid)
    assert said.read_text() == "asked\n"
    assert not folder.exists()


def test_command_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = 'trap "" TERM; echo $$ > "$0"; while :; do sleep 0.01; done'
    with guarded(["sh", "-c", script, str(ready)], limit=0.1) as guard:
        pid = written(ready)
    assert not is_running(pid)
    assert guard.returncode == 128 + signal.SIGKILL


def test_files_stay_when_the_command_ends_by_itself(tmp_path: Path) -> None:
    """Its owner is still there and may want them: a guarded `initdb` has then succeeded."""
    with guarded(["true"], remove=[tmp_path]) as guard:
        guard.wait(LIMIT)
    assert tmp_path.exists()


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_command_ends_however_its_owner_dies(tmp_path: Path, death: signal.Signals) -> None:
    ready, left = tmp_path / "ready", tmp_path / "left"
    left.touch()
    with Owner(OWNER, ready, left, *SLEEP) as owner:
        owner.told()
        pid = written(ready)
        owner.send(death)
        wait_until_gone(pid)
        eventually(lambda: not left.exists(), "removal of the file")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a death")
def test_command_ends_when_its_guard_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with guarded([*SLEEP, ready]) as guard:
        pid = written(ready)
        guard.kill()
        wait_until_gone(pid)


def test_guard_passes_on_sigterm_but_leaves_ctrl_c_to_the_owner(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with guarded([*SLEEP, ready]) as guard:
        pid = written(ready)
        guard.send_signal(signal.SIGINT)
        guard.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            guard.wait(0.1)
        assert is_running(pid)
        guard.send_signal(signal.SIGTERM)
        assert guard.wait(LIMIT) == 128 + signal.SIGTERM


def test_children_of_a_killed_command_are_killed_too(tmp_path: Path) -> None:
    """So it is with a reloader: what it started would keep the port."""
    ready = tmp_path / "ready"
    with guarded(["sh", "-c", 'sleep 600 & echo $! > "$0"; kill -9 $$', ready]) as guard:
        guard.wait(LIMIT)
        wait_until_gone(written(ready))


def test_guard_is_a_command_of_its_own() -> None:
    guard = subprocess.run(
        [sys.executable, "-m", "dev.guard", "--limit", "60", "--", "sleep", "600"],
        stdin=subprocess.DEVNULL,  # at its end from the start
        cwd=ROOT,
        env=os.environ,
        timeout=2 * LIMIT,
        check=False,
    )
    assert guard.returncode == 128 + signal.SIGTERM  # and not SIGKILL, when the limit is reached
