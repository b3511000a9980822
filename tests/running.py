"""A rendered service that runs as its users see it: `python cli.py dev`, with a database."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.demo import DIRECT, environment
from tests.image import START_LIMIT, free_port

STOP_LIMIT = 30  # seconds


@contextmanager
def running(project: Path, **variables: str) -> Iterator[str]:
    """Run the service's `dev` until the block ends; yield its address, when it is ready."""
    port = free_port()
    log = project.parent / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "cli.py", "dev"],
            cwd=project,
            env=environment(project, port) | variables,
            stdout=output,
            stderr=output,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, f"{address}/api/v1/health/ready", log)
        yield address
    finally:
        process.terminate()
        process.wait(STOP_LIMIT)
        # As root the data may lie elsewhere, behind a link, where nobody would clear them away.
        shutil.rmtree((project / ".data" / "postgres").resolve())


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            DIRECT.open(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"The service did not start:\n{log.read_text()}")
