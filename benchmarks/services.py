"""Real processes for benchmarks: PostgreSQL, Valkey, rendered services and their servers.

Servers under test run on one core. Load, PostgreSQL and Valkey run on the others, where the platform
can pin processes. Everything listens on loopback or on Unix sockets, and ends with this process.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "{{cookiecutter.project_slug}}"
SERVICE = ROOT / SOURCE
sys.path[1:1] = [str(SERVICE), str(ROOT)]

import asyncpg  # noqa: E402 - from here on, the service is on the path

from dev.postgres import embedded_postgres  # noqa: E402
from dev.server import free_port  # noqa: E402
from dev.supervisor import supervised  # noqa: E402
from dev.valkey import embedded_valkey  # noqa: E402
from scripts.demo import environment  # noqa: E402

START_SECONDS = 60
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


class BenchError(Exception):
    """The benchmark cannot run. The message says why."""


@contextmanager
def pinned(*, tested: bool) -> Generator[None]:
    """Start processes of the block on the core of servers under test, or on the other cores."""
    if len(CORES) < 2:  # noqa: PLR2004 - nothing to separate
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES[:1] if tested else CORES[1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Servers(NamedTuple):
    postgres: str
    valkey: str

    def database(self, name: str) -> str:
        """Create a database; return its URL."""
        asyncio.run(self._execute(f'CREATE DATABASE "{name}"'))
        return self.postgres.replace("/postgres?", f"/{name}?")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.postgres.replace("+asyncpg", ""))
        await connection.execute(statement)
        await connection.close()

    def variables(self, service: Path, database: str) -> dict[str, str]:
        """Return the environment of a service in development, with its database migrated."""
        variables = environment(service, free_port())
        variables |= {"DATABASE_URL": self.database(database), "REDIS_URL": self.valkey}
        run(sys.executable, "-m", "alembic", "upgrade", "head", cwd=service, env=variables)
        return variables


@contextmanager
def servers() -> Generator[Servers]:
    with pinned(tested=False), embedded_postgres() as postgres, embedded_valkey() as valkey:
        yield Servers(postgres, valkey)


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


@contextmanager
def serving(
    application: str, folder: Path, variables: Mapping[str, str], *options: str
) -> Generator[str]:
    """Run `uvicorn application` in the folder, with one worker; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", application, "--port", str(port), *options]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.NamedTemporaryFile(prefix="bench-"))
        with pinned(tested=True):
            server = supervised(command, cwd=folder, env=variables, output=log.fileno())
            process = stack.enter_context(server)
        deadline = time.monotonic() + START_SECONDS
        while not is_open(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{application} does not start:\n{Path(log.name).read_text()}")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
