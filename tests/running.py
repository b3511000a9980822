"""A rendered service that runs as its users see it: `python cli.py dev`, with a database."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_LIMIT = 60  # seconds
STOP_LIMIT = 30

# A proxy that the environment names would not find a service on this machine.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def running(project: Path, **variables: str) -> Iterator[str]:
    """Run the service's `dev` until the block ends; yield its address, when it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    log = project.parent / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "cli.py", "dev"],
            cwd=project,
            env=_environment(project) | {"PORT": str(port), "ENV_FILE": ""} | variables,
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


def _environment(project: Path) -> dict[str, str]:
    """Return ours without any setting of a service: the tests must meet nobody's database."""
    example = (project / ".env.example").read_text()
    settings = set(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=", example, re.MULTILINE))
    return {name: value for name, value in os.environ.items() if name not in settings}


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
