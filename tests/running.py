"""Run a generated service with `python cli.py dev`, as its users do."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from scripts.demo import environment
from tests.subprocesses import BINARIES

# Options of make: use the packages of this environment.
LENT = (f"BIN={BINARIES}", "--assume-old=setup")
START_LIMIT = 60  # seconds
STOP_LIMIT = 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/api/v1/health/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], log: Path) -> None:
    """Wait until the condition is true; a failure shows the log."""
    deadline = time.monotonic() + START_LIMIT
    while not condition():
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def lend_environment(project: Path) -> None:
    """Link the template's packages into the project, as if `make setup` had installed them."""
    lent = project / ".venv"
    lent.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (lent / name).symlink_to(Path(sys.prefix) / name)
    (lent / ".installed").touch()


@contextmanager
def running(project: Path, *command: str, **variables: str) -> Iterator[str]:
    """Run the service until the block ends; yield its address when it is ready."""
    port = free_port()
    log = project.parent / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command or [sys.executable, "cli.py", "dev"],
            cwd=project,
            env=environment(project, port) | variables,
            stdout=output,
            stderr=output,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or is_ready(address), log)
        assert process.poll() is None, log.read_text("utf-8")
        yield address
    finally:
        process.terminate()
        process.wait(STOP_LIMIT)
        # As root, this is a link to a folder elsewhere, which pytest would not delete.
        shutil.rmtree((project / ".data" / "postgres").resolve())
