"""Metrics of several processes, which share them through files in one folder."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def register_processes(registry: CollectorRegistry) -> None:
    """Add the metrics of all processes. Gauges of processes that have ended are removed first."""
    folder = Path(os.environ[SHARED_FOLDER])
    for number in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}:
        if not _is_alive(number):
            with suppress(FileNotFoundError):  # another process removes it too
                mark_process_dead(number)
    MultiProcessCollector(registry)


def _is_alive(number: int) -> bool:
    if sys.platform == "win32":
        return True  # os.kill() would end the process
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
