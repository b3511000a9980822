"""What `python cli.py dev` runs: servers where none are named, migrations, the programs.

Every process here is supervised (see dev/supervisor.py), so nothing outlives `dev`, killed or not.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Thread
from typing import IO, NamedTuple

import typer
from alembic.command import upgrade
from alembic.config import Config
from sqlalchemy import make_url

from dev import (
    postgres,
    # % if cookiecutter.__queue_rabbitmq
    rabbitmq,
    # % endif
    # % if cookiecutter.__redis
    valkey,
    # % endif
)
from dev.server import ServerError, locked
from dev.supervisor import ask_to_stop, supervised
from src.core.config import DEV_ENV_FILE, ROOT, Settings, load_settings
from src.db.setup import create_database

DATA = ROOT / ".data"
Programs = Mapping[str, Sequence[str]]  # the arguments for Python, by the name before its lines


def default_programs(settings: Settings) -> Programs:
    api = ["cli.py", "api", "--reload", "--port", str(settings.PORT)]
    programs: dict[str, Sequence[str]] = {"api": api}
    # % if cookiecutter.__queue
    programs["worker"] = ["cli.py", "worker", "--processes", "1", "--reload"]
    # % endif
    # % if cookiecutter.scheduler
    api.append("--scheduler-disabled")  # no reload is to interrupt a job
    if settings.SCHEDULER_ENABLED:
        programs["scheduler"] = ["cli.py", "scheduler"]
    # % endif
    return programs


class Server(NamedTuple):
    """A server that the service needs, which is started unless the settings name one."""

    name: str
    is_missing: Callable[[Settings], bool]
    start: Callable[[Settings], AbstractContextManager[str]]
    variable: str  # which leads the programs to it
    substitute: tuple[str, str] | None = None  # a setting for where it cannot be started


@contextmanager
def _postgres(settings: Settings) -> Iterator[str]:
    with postgres.embedded_postgres(DATA / "postgres", remove=[DEV_ENV_FILE]) as server:
        typer.echo(f"PostgreSQL is up; its data are kept in {DATA / 'postgres'}")
        url = make_url(server).set(database=settings.POSTGRES_DB)
        asyncio.run(create_database(url))
        yield url.render_as_string(hide_password=False)


SERVERS = [
    Server(
        "PostgreSQL",
        lambda it: not it.is_set("DATABASE_URL", "POSTGRES_HOST"),
        _postgres,
        "DATABASE_URL",
    ),
    # % if cookiecutter.cache_backend in ["redis", "all"]
    Server(
        "Valkey for the cache",
        lambda it: not it.is_set("REDIS_URL", "REDIS_HOST") and it.CACHE_BACKEND_TYPE == "redis",
        lambda _: valkey.embedded_valkey(remove=[DEV_ENV_FILE]),
        "REDIS_URL",
        ("CACHE_BACKEND_TYPE", "memory"),
    ),
    # % endif
    # % if cookiecutter.__queue_redis
    Server(
        "Valkey for tasks",
        lambda it: (
            not it.is_set("DRAMATIQ_REDIS_URL", "REDIS_URL", "REDIS_HOST")
            and it.DRAMATIQ_BROKER == "redis"
        ),
        # A task may be on its way when everything stops.
        lambda _: valkey.embedded_valkey(data=DATA / "valkey", remove=[DEV_ENV_FILE]),
        "DRAMATIQ_REDIS_URL",
    ),
    # % endif
    # % if cookiecutter.__queue_rabbitmq
    Server(
        "RabbitMQ",
        lambda it: not it.is_set("RABBITMQ_URL") and it.DRAMATIQ_BROKER == "rabbitmq",
        lambda _: rabbitmq.embedded_rabbitmq(DATA / "rabbitmq", remove=[DEV_ENV_FILE]),
        "RABBITMQ_URL",
    ),
    # % endif
]


def run_stack(programs: Programs | None = None) -> int:
    """Run until Ctrl-C, SIGTERM or the end of a program; return the exit status.

    The programs are those that the settings ask for, unless others are given. The status is 0 when
    asked to stop, since that is how `dev` ends, and the program's own when one ends by itself.
    """
    # An earlier `dev` may have left its file behind in a power cut: that names no server.
    settings = load_settings(dev_server=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        _check(settings)
        with ExitStack() as stack:
            variables = _start_servers(settings, stack)
            typer.echo("Migrating the database ...")
            # In this process: `python -m alembic` would first import everything once more.
            url = make_url(variables["DATABASE_URL"])
            upgrade(Config(ROOT / "alembic.ini", attributes={"url": url}), "head")
            programs = programs or default_programs(settings)
            host = "localhost" if settings.HOST in {"0.0.0.0", "::"} else settings.HOST  # noqa: S104 - compared, not bound
            typer.echo(f"Starting {', '.join(programs)} ...")
            typer.echo(f"Documentation: http://{host}:{settings.PORT}{settings.API_PREFIX}/docs")
            typer.echo("Ctrl-C stops everything.")
            return _run(programs, variables)
    except KeyboardInterrupt:
        typer.echo("Stopped.")
        return 0
    except ServerError as error:
        typer.echo(str(error), err=True)
        return 1


def _check(settings: Settings) -> None:
    if settings.is_deployed:
        raise ServerError(f"`dev` is for development, and ENV is {settings.ENV}.")
    family = socket.AF_INET6 if ":" in settings.HOST else socket.AF_INET
    try:
        socket.create_server((settings.HOST, settings.PORT), family=family).close()
    except OSError as error:
        message = f"Port {settings.PORT} of {settings.HOST} is taken; choose another PORT."
        raise ServerError(message) from error


def _start_servers(settings: Settings, stack: ExitStack) -> dict[str, str]:
    """Start what is missing until `stack` is left; return the variables that lead to servers."""
    variables: dict[str, str] = {}
    missing = [server for server in SERVERS if server.is_missing(settings)]
    if missing:
        stack.enter_context(locked(DATA, limit=0))
    for server in missing:
        typer.echo(f"Starting {server.name} ...")
        try:
            variables[server.variable] = stack.enter_context(server.start(settings))
        except ServerError as error:
            if not server.substitute:
                raise
            name, value = server.substitute
            variables[name] = value
            typer.echo(f"{error} Until then, {name} is {value}.", err=True)
    if variables:
        # Let `alembic ...` and `python cli.py db ...` in other terminals find the servers. A URL
        # may hold a password: the file is the user's own from the start.
        DEV_ENV_FILE.unlink(missing_ok=True)
        stack.callback(DEV_ENV_FILE.unlink, missing_ok=True)
        DEV_ENV_FILE.touch(mode=0o600)
        DEV_ENV_FILE.write_text("".join(f"{name}={url}\n" for name, url in variables.items()))
    database = settings.database_url.render_as_string(hide_password=False)
    return {"DATABASE_URL": database, **variables}


def _run(programs: Programs, variables: Mapping[str, str]) -> int:
    """Run the programs until the first ends, and stop the others; return its status."""
    colours = {"FORCE_COLOR": "1"} if sys.stdout.isatty() else {}  # which a pipe would hide
    environment = {**os.environ, **colours, **variables, "PYTHONUNBUFFERED": "1"}
    width = max(map(len, programs))
    running: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name, arguments in programs.items():
            prefix = f"{name:{width}} | " if len(programs) > 1 else ""
            running[name] = stack.enter_context(_program(arguments, environment, prefix))
        for process in running.values():
            # Else the next would begin to stop when the one before has.
            stack.callback(ask_to_stop, process)
        while True:
            for name, process in running.items():
                if (status := process.poll()) is not None:
                    typer.echo(f"{name} ended by itself, with status {status}.", err=True)
                    return status
            time.sleep(0.1)


@contextmanager
def _program(
    arguments: Sequence[str], environment: Mapping[str, str], prefix: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; its lines appear on ours, behind the prefix."""
    command = [sys.executable, *arguments]
    with supervised(command, cwd=ROOT, env=environment, output=subprocess.PIPE) as process:
        printer = Thread(target=_print, args=(process.stdout, prefix.encode()), daemon=True)
        printer.start()
        try:
            yield process
        finally:
            ask_to_stop(process)
            process.wait()
            printer.join(timeout=1)  # the pipe may be kept open by what left the program's group


def _print(output: IO[bytes], prefix: bytes) -> None:
    with output:
        for line in output:
            sys.stdout.buffer.write(prefix + line.rstrip(b"\n") + b"\n")
            sys.stdout.buffer.flush()
