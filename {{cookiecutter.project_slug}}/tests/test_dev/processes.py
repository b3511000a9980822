"""Processes that own servers and are killed, and ways to see what is left of them."""

import json
import os
import select
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

from dev import postgres, unprivileged
from src.core.config import ROOT, Settings
from tests.leash import Leash

LIMIT = 60.0  # seconds; only a test that fails waits so long
BYTECODE = ROOT / ".pytest_cache" / "bytecode"
AS_ROOT = sys.platform != "win32" and os.geteuid() == 0


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"not seen within {LIMIT} s: {what}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    ps = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)],  # noqa: S607 - wherever the system has it
        capture_output=True,
        check=False,
    )
    # A zombie is dead, and only waits for its parent to look.
    return bool(ps.stdout.strip()) and not ps.stdout.startswith(b"Z")


def wait_until_gone(pid: int) -> None:
    eventually(lambda: not is_running(pid), f"the end of process {pid}")


def name_other_servers(monkeypatch: pytest.MonkeyPatch, *ours: str) -> None:
    """Name every server but the database and `ours`, so that `dev` starts none of them."""
    for name, setting in Settings.model_fields.items():
        if name.endswith("_URL") and name not in {"DATABASE_URL", *ours}:
            default: SecretStr | None = setting.default
            monkeypatch.setenv(name, default.get_secret_value() if default else "unix:///nowhere")


class Owner:
    """A Python process that may die in any way; it tells what it did in lines of JSON."""

    def __init__(self, script: str, *arguments: object) -> None:
        prologue = (
            "import json, sys\nfrom pathlib import Path\nfrom dev import postgres, unprivileged\n"
            f"unprivileged.SHARED = Path({str(unprivileged.SHARED)!r})\n"
            f"postgres.INITIALISE = {postgres.INITIALISE!r}\n"
            "def tell(*values):\n    print(json.dumps(values, default=str), flush=True)\n"
        )
        # Lest each process of a stack compile everything anew, where Python is to write nothing.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(BYTECODE)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", prologue + script, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._leash = Leash(self.process.pid)

    def told(self) -> Any:
        assert self.process.stdout is not None
        line = b""
        deadline = time.monotonic() + LIMIT
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], left)
            assert ready, f"the owner said no more than {line!r}"
            received = os.read(self.process.stdout.fileno(), 1)
            assert received, f"the owner ended, and said no more than {line!r}"
            line += received
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


def modes(path: Path) -> dict[Path, tuple[int, int, int]]:
    """Mode and owner of a path and of every folder that leads to it."""
    stats = {part: part.stat() for part in (path, *path.parents)}
    return {part: (stat.st_mode, stat.st_uid, stat.st_gid) for part, stat in stats.items()}
