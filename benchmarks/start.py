"""What a service costs before it does anything: its start, its memory, and its generation.

The *textbook* is one file with FastAPI and SQLAlchemy. The start is the time until the first response
of a health check, with compiled bytecode; the processor's time has less noise. Memory is that of the
process after 32 clients have listed items. Generation is compared with a template of one file, with the
same questions and hooks. Jinja takes almost all of its time, for 500 files and their names: it cannot
copy those without tags, because cookiecutter would then replace changed files with `--skip-if-file-exists`.
"""

import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from report import ROUNDS, SECONDS, Costs, report
from services import (
    ROOT,
    SERVICE,
    SOURCE,
    START_SECONDS,
    BenchError,
    Servers,
    load,
    pinned,
    processor_seconds,
    render,
    run_script,
    temporary,
)

from dev.server import free_port

HERE = Path(__file__).parent
CLIENTS = 32
ITEMS = "/items/?limit=100"
PATHS = ("/api/v1/health/live", f"/api/v1{ITEMS}")


class Place(NamedTuple):
    application: str
    folder: Path
    health: str
    items: str
    variables: Mapping[str, str]


class Started(NamedTuple):
    items: str
    seconds: float
    processor_seconds: float
    process: int


@contextmanager
def started(place: Place) -> Generator[Started]:
    """Run uvicorn, and yield when it has responded to the health check."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", place.application, "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    variables = {**place.variables, "LOG_LEVEL": "WARNING"}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    launched = time.monotonic()
    with pinned(tested=True):
        process = subprocess.Popen(
            [*command, "--no-access-log"],
            cwd=place.folder,
            env=variables,
            stderr=subprocess.DEVNULL,
        )
    try:
        while not responds(address + place.health):
            if process.poll() is not None or time.monotonic() > launched + START_SECONDS:
                raise BenchError(f"{place.application} does not start in {place.folder}.")
            time.sleep(0.005)
        seconds = time.monotonic() - launched
        yield Started(address + place.items, seconds, processor_seconds(process.pid), process.pid)
    finally:
        process.terminate()
        process.wait()


def responds(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address) as response:  # noqa: S310 - our own
        return bool(response.status == 200)  # noqa: PLR2004 - the only status of a health check
    return False


def megabytes(process: int) -> float:
    [line] = [
        each
        for each in Path(f"/proc/{process}/status").read_text("utf-8").splitlines()
        if each.startswith("VmRSS:")
    ]
    return int(line.split()[1]) / 1024


def measure_processes(places: Mapping[str, Place]) -> None:
    times, processor, memory, more = (empty(places) for _ in range(4))
    for place in places.values():
        with started(place):  # compiles the bytecode
            pass
    for number in range(1, ROUNDS + 1):
        sys.stderr.write(f"Start and memory: round {number} of {ROUNDS}\n")
        for name, place in places.items():
            with started(place) as server:
                times[name].append(1000 * server.seconds)
                processor[name].append(1000 * server.processor_seconds)
                load(server.items, clients=CLIENTS, seconds=SECONDS)
                memory[name].append(megabytes(server.process))
                for _ in range(3):
                    load(server.items, clients=CLIENTS, seconds=SECONDS)
                more[name].append(megabytes(server.process))
    report("Start, until the first response", times, "ms")
    report("Start, processor", processor, "ms")
    report(f"Memory after {SECONDS:g} s of load", memory, "MB")
    report(f"Memory after {4 * SECONDS:g} s of load", more, "MB")


def empty(places: Iterable[str]) -> Costs:
    return {name: [] for name in places}


def measure_generation(folder: Path) -> None:
    """Compare with a template that has one file, and the questions and hooks of this one."""
    small = folder / "small"
    shutil.copytree(ROOT / "hooks", small / "hooks")
    shutil.copy(ROOT / "cookiecutter.json", small)
    (small / SOURCE).mkdir()
    (small / SOURCE / "main.py").write_text("", "utf-8")
    costs: Costs = {"template of one file": [], "this template": []}
    for number in range(ROUNDS + 1):
        for (name, values), template in zip(costs.items(), (small, ROOT), strict=True):
            before = children_seconds()
            render(template, folder / f"{name} {number}")
            values.append(1000 * (children_seconds() - before))
    report("Generation, processor", {name: values[1:] for name, values in costs.items()}, "ms")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    with temporary() as folder, Servers() as servers:
        measure_generation(folder)
        default = render(ROOT, folder / "default")
        textbook = Place("textbook:app", HERE, "/health", ITEMS, servers.variables(HERE))
        measure_processes(
            {
                "textbook": textbook,
                "default answers": Place("main:app", default, *PATHS, servers.variables(default)),
                "every feature": Place("main:app", SERVICE, *PATHS, servers.variables(SERVICE)),
            }
        )


if __name__ == "__main__":
    run_script(main)
