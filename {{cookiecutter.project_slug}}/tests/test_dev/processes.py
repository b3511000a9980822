"""Processes that own servers and are killed, and ways to see what is left of them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from src.core.config import ROOT, Settings
from tests.leash import Leash

LIMIT = 60.0  # seconds; only a test that fails waits so long
BYTECODE = ROOT / ".pytest_cache" / "bytecode"
PROLOGUE = """
import json, sys
from pathlib import Path
def report(*values):
    print(json.dumps(values, default=str), flush=True)
"""


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not seen within {LIMIT} s: {what}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    ps = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(ps, capture_output=True, check=False).stdout.strip()
    # A zombie is dead, and only waits for its parent to look.
    return bool(state) and not state.startswith(b"Z")


def wait_until_gone(pid: int) -> None:
    eventually(lambda: not is_running(pid), f"the end of process {pid}")


def pid_of_postgres(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().split()[0])


def query(url: str, statement: str) -> Any:
    """Return the one value of a query, or None for another statement."""

    async def connect_and_query() -> Any:
        engine = create_async_engine(url)
        try:
            async with engine.begin() as connection:
                result = await connection.execute(text(statement))
                return result.scalar() if result.returns_rows else None
        finally:
            await engine.dispose()

    return asyncio.run(connect_and_query())


def name_other_servers(monkeypatch: pytest.MonkeyPatch, *ours: str) -> None:
    """Name every server but the database and `ours`, so that `dev` starts none of them."""
    for name, setting in Settings.model_fields.items():
        if name.endswith("_URL") and name not in {"DATABASE_URL", *ours}:
            default: SecretStr | None = setting.default
            monkeypatch.setenv(name, default.get_secret_value() if default else "unix:///nowhere")


class Owner:
    """A Python process that may die in any way; it reports in lines of JSON."""

    def __init__(self, script: str, *arguments: object) -> None:
        # Else each process of a stack compiles everything, where Python is to write nothing.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(BYTECODE)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + script, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._leash = Leash(self.process.pid)

    def reported(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the owner ended without a report"
        return json.loads(line)

    def send(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leash.pull()
        self.process.__exit__(kind, error, trace)
