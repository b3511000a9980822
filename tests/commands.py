"""Commands that run a project's own checks and tests, and may leave nothing running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

BINARIES = Path(sys.executable).parent
LIMIT = 900  # seconds that a command may take, the longest suite on a busy machine included
END_LIMIT = 30  # seconds for what it started to end
MARK = "STARTED_BY"


class CommandError(Exception):
    """The command failed, hung or left a process behind; the message holds what it printed."""


def run(
    *command: str | Path,
    cwd: Path,
    scratch: Path,
    env: Mapping[str, str] | None = None,
    limit: float = LIMIT,
) -> str:
    """Run a program of this environment in a project; return what it printed.

    Its output goes to a file, since who reads a pipe waits for the last process that holds it.
    """
    program, *arguments = command
    mark, log = uuid4().hex, scratch / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BINARIES / program, *arguments],
            cwd=cwd,
            env={**_environment(), **(env or {}), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        hung = _hangs(process, mark, limit)
    fault = f"took over {limit} s" if hung else f"ended with {process.returncode}"
    left = _left_behind(mark)
    printed = log.read_text("utf-8", errors="replace")
    if hung or process.returncode or left:
        fault += f" and left behind {left}" if left else ""
        raise CommandError(f"{' '.join(map(str, command))} {fault}:\n{printed}")
    return printed


def _environment() -> dict[str, str]:
    """Return ours, but for what pytest-xdist tells its own workers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {
        "PYTHONDONTWRITEBYTECODE": "1"
    }


def _hangs(process: subprocess.Popen[bytes], mark: str, limit: float) -> bool:
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        for number in (signal.SIGABRT, signal.SIGKILL):  # at the first pytest shows where it is
            for pid in {process.pid, *_running(mark)}:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(1)
        process.wait()
        return True
    return False


def _left_behind(mark: str) -> list[str]:
    """Return the commands of what still runs; on Linux alone, elsewhere none."""
    deadline = time.monotonic() + END_LIMIT
    while (left := _running(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return list(left.values())


def _running(mark: str) -> dict[int, str]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = process.joinpath("environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if command and f"{MARK}={mark}".encode() in environment:
            found[int(process.name)] = command
    return found
