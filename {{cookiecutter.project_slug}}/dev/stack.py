"""What `python cli.py dev` runs: servers where none are named, migrations, the programs.

Every process here is guarded (see dev/guard.py), so nothing outlives `dev`, killed or not.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

import typer
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, make_url

from dev import (
    postgres,
    # % if cookiecutter.__queue_rabbitmq
    rabbitmq,
    # % endif
    # % if cookiecutter.__redis
    valkey,
    # % endif
)
from dev.guard import ServerError, guarded
from src.core.config import DEV_ENV_FILE, ROOT, Settings, load_settings

DATA = ROOT / ".data"
STOP_LIMIT = 10.0  # seconds; a developer does not want to wait for slow requests


@dataclass(frozen=True)
class Program:
    """A process of the stack: the arguments for Python and a name for its lines."""

    name: str
    arguments: tuple[str, ...]


def default_programs(settings: Settings) -> Sequence[Program]:
    api = ["cli.py", "api", "--reload", "--port", str(settings.PORT)]
    # % if cookiecutter.scheduler
    api.append("--scheduler-disabled")  # it is a program of its own: no reload interrupts its jobs
    # % endif
    return [
        Program("api", tuple(api)),
        # % if cookiecutter.__queue
        Program("worker", ("cli.py", "worker", "--processes", "1", "--reload")),
        # % endif
        # % if cookiecutter.scheduler
        *([Program("scheduler", ("cli.py", "scheduler"))] if settings.SCHEDULER_ENABLED else []),
        # % endif
    ]


def run_stack(programs: Sequence[Program] | None = None) -> int:
    """Run until Ctrl-C, SIGTERM or the end of a program; return the exit status.

    The programs are those that the settings ask for, unless others are given. The status is 0 when
    asked to stop, since that is how `dev` ends, and the program's own when one ends by itself.
    """
    # An earlier `dev` may have left its file behind in a power cut: that names no server.
    settings = load_settings(dev_server=False)
    if settings.is_deployed:
        typer.echo(f"`dev` is for development, and ENV is {settings.ENV}.", err=True)
        return 1
    if _is_taken(settings):
        typer.echo(
            f"Port {settings.PORT} of {settings.HOST} is taken; choose another PORT.", err=True
        )
        return 1
    programs = default_programs(settings) if programs is None else programs
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with ExitStack() as stack:
            url = stack.enter_context(_database(settings))
            started = {} if settings.has_custom_database else _variable(url)
            # % if cookiecutter.cache_backend in ["redis", "all"]
            started |= stack.enter_context(_cache(settings))
            # % endif
            # % if cookiecutter.__queue_redis
            started |= stack.enter_context(_queue(settings))
            # % endif
            # % if cookiecutter.__queue_rabbitmq
            started |= stack.enter_context(_rabbitmq(settings))
            # % endif
            if started:
                _tell_other_terminals(started)
                stack.callback(DEV_ENV_FILE.unlink, missing_ok=True)
            _migrate(url)
            _greet(settings, programs)
            return _run(stack, programs, _environment(_variable(url) | started))
    except KeyboardInterrupt:
        typer.echo("Stopped.")
        return 0
    except ServerError as error:
        typer.echo(str(error), err=True)
        return 1


def _is_taken(settings: Settings) -> bool:
    """Whether the API could not listen; better known before all the rest is started."""
    try:
        socket.create_server((settings.HOST, settings.PORT)).close()
    except OSError:
        return True
    return False


@contextmanager
def _database(settings: Settings) -> Iterator[URL]:
    """Yield where the database is: at the server that the settings name, or at one of ours."""
    if settings.has_custom_database:
        yield settings.database_url
        return
    typer.echo("Starting PostgreSQL ...")
    with postgres.embedded_postgres(DATA / "postgres", remove=[DEV_ENV_FILE]) as server:
        typer.echo(f"PostgreSQL is up; its data are kept in {server.data}")
        server.create_database(settings.POSTGRES_DB)
        url = make_url(server.url(settings.POSTGRES_DB))
        yield url


# % if cookiecutter.cache_backend in ["redis", "all"]
@contextmanager
def _cache(settings: Settings) -> Iterator[dict[str, str]]:
    """Yield the variable that leads to a server of ours, where one is needed and none named."""
    if settings.has_custom_redis or settings.CACHE_BACKEND_TYPE != "redis":
        yield {}
        return
    typer.echo("Starting Valkey for the cache ...")
    with ExitStack() as stack:
        variables = {}
        try:
            server = valkey.embedded_valkey(remove=[DEV_ENV_FILE])
            variables["REDIS_URL"] = stack.enter_context(server)
        except valkey.ValkeyError as error:
            typer.echo(f"{error} Until then, each process caches in its own memory.", err=True)
            variables["CACHE_BACKEND_TYPE"] = "memory"
        yield variables


# % endif
# % if cookiecutter.__queue_redis
@contextmanager
def _queue(settings: Settings) -> Iterator[dict[str, str]]:
    """Yield the variable that leads to a server of ours for tasks, unless one is named.

    It keeps them for the next time: a task may be on its way when everything stops.
    """
    if settings.has_custom_queue or settings.DRAMATIQ_BROKER != "redis":
        yield {}
        return
    data = DATA / "valkey"
    data.mkdir(parents=True, exist_ok=True)
    typer.echo("Starting Valkey for tasks ...")
    options = ("--appendonly", "yes", "--dir", str(data))
    with valkey.embedded_valkey(options, remove=[DEV_ENV_FILE]) as url:
        yield {"DRAMATIQ_REDIS_URL": url}


# % endif
# % if cookiecutter.__queue_rabbitmq
@contextmanager
def _rabbitmq(settings: Settings) -> Iterator[dict[str, str]]:
    """As PostgreSQL: a server of ours that keeps its data, unless one is named."""
    if settings.has_custom_rabbitmq or settings.DRAMATIQ_BROKER != "rabbitmq":
        yield {}
        return
    typer.echo("Starting RabbitMQ ...")
    with rabbitmq.embedded_rabbitmq(DATA / "rabbitmq", remove=[DEV_ENV_FILE]) as url:
        yield {"RABBITMQ_URL": url}


# % endif
def _variable(url: URL) -> dict[str, str]:
    return {"DATABASE_URL": url.render_as_string(hide_password=False)}


def _tell_other_terminals(variables: dict[str, str]) -> None:
    """Let `alembic ...` and `python cli.py db ...` find the server while it runs."""
    DEV_ENV_FILE.unlink(missing_ok=True)
    # The URL may hold a password: the file is the user's own from the start.
    descriptor = os.open(DEV_ENV_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in variables.items())


def _migrate(url: URL) -> None:
    """Migrate in this process: `python -m alembic` would first import everything once more."""
    typer.echo("Migrating the database ...")
    command.upgrade(Config(ROOT / "alembic.ini", attributes={"url": url}), "head")


def _greet(settings: Settings, programs: Sequence[Program]) -> None:
    host = "localhost" if settings.HOST in {"0.0.0.0", "::"} else settings.HOST  # noqa: S104 - compared, not bound
    typer.echo(f"Starting {', '.join(program.name for program in programs)} ...")
    typer.echo(f"Documentation: http://{host}:{settings.PORT}{settings.API_PREFIX}/docs")
    typer.echo("Ctrl-C stops everything.")


def _environment(servers: Mapping[str, str]) -> dict[str, str]:
    """Ours, with the servers; and for programs behind a pipe: lines at once, colours as here."""
    colours = {"FORCE_COLOR": "1"} if sys.stdout.isatty() else {}
    return {**os.environ, **colours, **servers, "PYTHONUNBUFFERED": "1"}


def _run(stack: ExitStack, programs: Sequence[Program], environment: Mapping[str, str]) -> int:
    """Start the programs and wait for the first to end; leaving `stack` stops the others."""
    ended: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    width = max(len(program.name) for program in programs)
    guards: list[subprocess.Popen[bytes]] = []
    for program in programs:
        several = len(programs) > 1
        output = stack.enter_context(_prefixed(f"{program.name:{width}} | ")) if several else None
        arguments = [sys.executable, *program.arguments]
        guard = stack.enter_context(
            guarded(arguments, limit=STOP_LIMIT, cwd=ROOT, env=environment, output=output)
        )
        guards.append(guard)
        threading.Thread(target=_report, args=(program.name, guard, ended), daemon=True).start()
    # Else the next would begin to stop when the one before has.
    stack.callback(_stop_all, guards)
    while True:
        # With a time-out, for on Windows Ctrl-C is only seen between waits.
        with suppress(queue.Empty):
            name, status = ended.get(timeout=0.5)
            typer.echo(f"{name} ended by itself, with status {status}.", err=True)
            return status


def _stop_all(guards: Sequence[subprocess.Popen[bytes]]) -> None:
    for guard in guards:
        guard.terminate()


def _report(
    name: str, guard: subprocess.Popen[bytes], ended: queue.SimpleQueue[tuple[str, int]]
) -> None:
    ended.put((name, guard.wait()))


@contextmanager
def _prefixed(prefix: str) -> Iterator[BinaryIO]:
    """Yield a file for a program's output: its lines appear on ours, behind the prefix."""
    read_end, write_end = os.pipe()
    pump = threading.Thread(target=_pump, args=(read_end, prefix.encode()), daemon=True)
    pump.start()
    with os.fdopen(write_end, "wb") as output:
        yield output
    pump.join(timeout=1)


def _pump(read_end: int, prefix: bytes) -> None:
    with os.fdopen(read_end, "rb") as lines:
        for line in lines:
            sys.stdout.buffer.write(prefix + line.rstrip(b"\n") + b"\n")
            sys.stdout.buffer.flush()
