"""Run programs of this environment in a project."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

BINARIES = Path(sys.executable).parent
UNTOUCHED = {"PYTHONDONTWRITEBYTECODE": "1"}  # for programs that run in the template's own folder
LIMIT = 900  # seconds; the longest suite on a busy machine needs many
MAX_RETRIED = 3  # more failures have a common cause


class FlakyTestWarning(UserWarning):
    """Tests failed in a suite, and passed when they ran again alone."""


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
    assert done.returncode == 0, report(done)
    return str(done.stdout)


def report(done: subprocess.CompletedProcess[str]) -> str:
    return f"{' '.join(map(str, done.args))}\n{done.stdout}"


def run_tests(
    *options: str, cwd: Path, env: Mapping[str, str] | None = None, parallel: Sequence[str] = ()
) -> None:
    """Run the tests of a project, which must pass.

    The busy machine delays processes and servers by seconds. So up to three failed tests run again,
    alone and without the options in `parallel`. If they pass, a warning has the output.
    """
    command = ("pytest", "--quiet", *options)
    done = attempt(*command, *parallel, cwd=cwd, env=env)
    if done.returncode == 0:
        return
    if len(re.findall("^(?:FAILED|ERROR) ", done.stdout, re.MULTILINE)) <= MAX_RETRIED:
        alone = ("--last-failed", "--last-failed-no-failures=none")
        if attempt(*command, *alone, cwd=cwd, env=env).returncode == 0:
            warnings.warn(report(done), FlakyTestWarning, stacklevel=2)
            return
    raise AssertionError(report(done))


def environment() -> dict[str, str]:
    """Return this process's environment without the variables of pytest-xdist's workers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
