"""Run programs of this environment in a project."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

BINARIES = Path(sys.executable).parent
UNTOUCHED = {"PYTHONDONTWRITEBYTECODE": "1"}  # for programs that run in the template's own folder
LIMIT = 900  # seconds; the longest suite on a busy machine needs many


def attempt(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program and return its exit code and output, including errors.

    The output goes to a file, because a pipe stays open while any child process runs.
    """
    program, *arguments = command
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [own if (own := BINARIES / program).exists() else program, *arguments],
            cwd=cwd,
            env=environment() | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(LIMIT)
        with suppress(ProcessLookupError):  # a hanging program and its children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, output.read())


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program that must succeed; return its output."""
    done = attempt(*command, cwd=cwd, env=env)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return str(done.stdout)


def environment() -> dict[str, str]:
    """Return this process's environment without the variables of pytest-xdist's workers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
