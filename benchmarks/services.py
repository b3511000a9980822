"""Real processes for benchmarks: PostgreSQL, Valkey, rendered services and their servers.

Servers under test run on one core. Load, PostgreSQL and Valkey run on the others, where the platform
can pin processes. Everything listens on loopback or on Unix sockets, and ends with this process.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "{{cookiecutter.project_slug}}"
SERVICE = ROOT / SOURCE
sys.path[1:1] = [str(SERVICE), str(ROOT)]

from dev.load import Load, send, stop_at_sigterm  # noqa: E402 - now the service is on the path
from dev.postgres import embedded_postgres  # noqa: E402
from dev.server import free_port  # noqa: E402
from dev.supervisor import supervised  # noqa: E402
from dev.valkey import embedded_valkey  # noqa: E402
from scripts.demo import environment  # noqa: E402

START_SECONDS = 60
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


class BenchError(Exception):
    """The benchmark cannot run. The message says why."""


def run_script(main: Callable[[], None]) -> None:
    """Run a benchmark; an error, Ctrl-C or SIGTERM ends it without a traceback and files."""
    stop_at_sigterm()
    try:
        main()
    except BenchError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def pinned(*, tested: bool | None) -> Generator[None]:
    """Start processes of the block on the core of servers under test, the others, or with None all."""
    if len(CORES) < 2:  # noqa: PLR2004 - nothing to separate
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {True: CORES[:1], False: CORES[1:], None: CORES}[tested])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Servers(ExitStack):
    """PostgreSQL and Valkey for applications, until the block ends."""

    def __enter__(self) -> Self:
        self.enter_context(pinned(tested=False))
        self.valkey = self.enter_context(embedded_valkey())
        return self

    def variables(self, folder: Path, python: str = sys.executable) -> dict[str, str]:
        """Return the environment of an application, with its own PostgreSQL and a free port.

        One PostgreSQL for all would need more connections than it allows.
        """
        urls = {"DATABASE_URL": self.enter_context(embedded_postgres()), "REDIS_URL": self.valkey}
        if not (folder / "alembic.ini").exists():
            return {**os.environ, **urls}
        variables = {**environment(folder, free_port()), **urls}
        run(python, "-m", "alembic", "upgrade", "head", cwd=folder, env=variables)
        return variables


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        *_, reason = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise BenchError(f"`{' '.join(map(str, command))}` failed: {reason}")
    return done.stdout


@contextmanager
def temporary() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


@contextmanager
def checkout(revision: str) -> Generator[Path]:
    """Check a revision of the template out into a temporary worktree; yield its path."""
    try:
        commit = run("git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except BenchError:
        raise BenchError(f"BASE={revision} is not a revision of this repository.") from None
    with temporary() as folder:
        run("git", "worktree", "add", "--quiet", "--detach", folder / "base", commit)
        try:
            yield folder / "base"
        finally:
            run("git", "worktree", "remove", "--force", folder / "base")


def render(template: Path, folder: Path, **answers: str) -> Path:
    """Render a service into the new folder; return its path. Other answers have their defaults."""
    folder.mkdir(parents=True)
    given = [f"{question}={answer}" for question, answer in answers.items()]
    command = [sys.executable, "-m", "cookiecutter", template, "--no-input", "-o", folder, *given]
    run(*command, env={**os.environ, "HOME": str(folder)})  # cookiecutter remembers answers there
    [service] = folder.glob("*/main.py")
    return service.parent


def python_for(template: Path, folder: Path) -> str:
    """Return a Python with the packages of this revision, installed in the folder if they differ."""
    pins = template / SOURCE / "requirements.txt"
    if pins.read_bytes() == (SERVICE / "requirements.txt").read_bytes():
        return sys.executable
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--python", sys.executable, folder)
    run(uv, "pip", "install", "--quiet", "--python", folder, "--requirement", pins)
    return str(folder / "bin" / "python")


@contextmanager
def serving(
    application: str,
    folder: Path,
    variables: Mapping[str, str],
    *options: str,
    python: str = sys.executable,
) -> Generator[str]:
    """Run `uvicorn application` in the folder, with one worker; yield its address."""
    port = free_port()
    command = [python, "-m", "uvicorn", application, "--port", str(port), *options]
    with pinned(tested=True), started(command, port, folder, variables), pinned(tested=False):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def started(
    command: Sequence[str], port: int, folder: Path, variables: Mapping[str, str]
) -> Generator[subprocess.Popen[bytes]]:
    """Run a server in the folder; yield its supervisor when the port is open."""
    with (
        tempfile.NamedTemporaryFile(prefix="bench-") as log,
        supervised(command, cwd=folder, env=variables, output=log.fileno()) as process,
    ):
        deadline = time.monotonic() + START_SECONDS
        while not is_open(port):
            if process.poll() is not None or time.monotonic() > deadline:
                output = Path(log.name).read_text()[-4000:]
                raise BenchError(f"{' '.join(command)} does not start:\n{output}")
            time.sleep(0.02)
        yield process


def load(url: str, body: str = "", *, clients: int, seconds: float) -> Load:
    """Send GET, or POST with a body, from concurrent clients that keep their connections."""
    method = "POST" if body else "GET"
    sent = send(url, method=method, body=body, clients=clients, seconds=seconds)
    if failures := sent.results.keys() - {200, 201}:
        raise BenchError(f"{url}: unexpected {', '.join(map(str, failures))}.")
    return sent


def processor_seconds(ancestor: int) -> float:
    """Return the processor time that the process and its descendants have used, on Linux."""
    stats: dict[int, list[str]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            stats[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
    family, spent = {ancestor}, 0
    for process, (_, parent, *fields) in sorted(stats.items()):  # children have higher IDs
        if process in family or int(parent) in family:
            family.add(process)
            spent += int(fields[9]) + int(fields[10])
    return spent / TICKS


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
