"""Metrics of several processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from src.core.process_metrics import SHARED_FOLDER, register_processes
from tests.process_killer import ProcessKiller

PROGRAM = """
from prometheus_client import Counter, Gauge
Gauge("leader", "", multiprocess_mode="livemax").set(1)
Counter("runs", "").inc()
print(flush=True)
input()
"""


def metrics() -> str:
    registry = CollectorRegistry()
    register_processes(registry)
    return generate_latest(registry).decode()


@pytest.mark.slow
def test_gauges_of_a_killed_process_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        killer = ProcessKiller(process.pid)
        assert process.stdout
        process.stdout.readline()
        before = metrics()
        killer.kill()

    assert "leader 1.0" in before
    assert "leader" not in metrics()
    assert "runs_total 1.0" in metrics()
