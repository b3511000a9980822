"""Helpers to run and kill processes that own servers."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from dev import stack
from src.core.config import ROOT, Settings
from tests.process_killer import ProcessKiller

LIMIT = 60.0  # seconds; only a failing test waits this long
PROLOGUE = """
import json, sys
from pathlib import Path
def report(value):
    print(json.dumps(value), flush=True)
"""


@contextmanager
def owner(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a Python process that a test may kill."""
    with subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        killer = ProcessKiller(process.pid)
        try:
            yield process
        finally:
            killer.kill()


def reported_by(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def end(process: subprocess.Popen[str], death: signal.Signals) -> int:
    process.send_signal(death)
    return process.wait(LIMIT)


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not seen within {LIMIT} s: {what}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    ps = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(ps, capture_output=True, check=False).stdout.strip()
    # A zombie has ended.
    return bool(state) and not state.startswith(b"Z")


def wait_until_gone(pid: int) -> None:
    eventually(lambda: not is_running(pid), f"the end of process {pid}")


def pid_of_postgres(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def query(url: str, statement: str) -> Any:
    """Return the first value of the first row, or None."""
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

    async def connect_and_query() -> Any:
        connection = await asyncpg.connect(address)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(connect_and_query())


def name_other_servers(monkeypatch: pytest.MonkeyPatch, *ours: str) -> None:
    """Set the URLs of all servers except the database and `ours`, so that `dev` starts none."""
    for name in {server.variable for server in stack.SERVERS} - {"DATABASE_URL", *ours}:
        default: SecretStr | None = Settings.model_fields[name].default
        monkeypatch.setenv(name, default.get_secret_value() if default else "unix:///nowhere")
