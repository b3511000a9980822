"""`python cli.py dev`: starts missing servers, runs migrations and starts the service.

Every process is supervised (see dev/supervisor.py), so all of them stop when `dev` ends or is
killed.
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
from pathlib import Path
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
from dev.supervisor import request_stop, supervised
from src.core.config import DEV_ENV_FILE, ROOT, Settings, load_settings
from src.db.setup import create_database

DATA, ENV_FILE = DEV_ENV_FILE.parent, DEV_ENV_FILE.name
Programs = Mapping[str, Sequence[str]]  # arguments for Python; the name is the prefix of log lines


def default_programs(settings: Settings) -> Programs:
    api = ["cli.py", "api", "--reload", "--port", str(settings.PORT)]
    programs: dict[str, Sequence[str]] = {"api": api}
    # % if cookiecutter.__queue
    programs["worker"] = ["cli.py", "worker", "--processes", "1", "--reload"]
    # % endif
    # % if cookiecutter.scheduler
    api.append("--scheduler-disabled")  # a reload must not interrupt a job
    if settings.SCHEDULER_ENABLED:
        programs["scheduler"] = ["cli.py", "scheduler"]
    # % endif
    return programs


class Server(NamedTuple):
    """A server that `dev` starts unless the settings name one."""

    check: str  # its name in `python cli.py doctor`
    name: str
    is_missing: Callable[[Settings], bool]
    start: Callable[[Settings, Path], AbstractContextManager[str]]  # the path is for its data
    variable: str  # gets the server's URL
    fallback: tuple[str, str] | None = None  # a setting to use if the server cannot start


@contextmanager
def _postgres(settings: Settings, data: Path) -> Iterator[str]:
    with postgres.embedded_postgres(data / "postgres", remove=[data / ENV_FILE]) as server:
        typer.echo(f"PostgreSQL is running. Its data is in {data / 'postgres'}")
        url = make_url(server).set(database=settings.POSTGRES_DB)
        asyncio.run(create_database(url))
        yield url.render_as_string(hide_password=False)


SERVERS = [
    Server(
        "database",
        "PostgreSQL",
        lambda it: not it.is_set("DATABASE_URL", "POSTGRES_HOST"),
        _postgres,
        "DATABASE_URL",
    ),
    # % if cookiecutter.cache_backend in ["redis", "all"]
    Server(
        "cache",
        "Valkey for the cache",
        lambda it: not it.is_set("REDIS_URL", "REDIS_HOST") and it.CACHE_BACKEND_TYPE == "redis",
        lambda _, data: valkey.embedded_valkey(remove=[data / ENV_FILE]),
        "REDIS_URL",
        ("CACHE_BACKEND_TYPE", "memory"),
    ),
    # % endif
    # % if cookiecutter.__queue_redis
    Server(
        "broker",
        "Valkey for tasks",
        lambda it: (
            not it.is_set("DRAMATIQ_REDIS_URL", "REDIS_URL", "REDIS_HOST")
            and it.DRAMATIQ_BROKER == "redis"
        ),
        # With stored data, queued tasks survive a restart of `dev`.
        lambda _, data: valkey.embedded_valkey(data=data / "valkey", remove=[data / ENV_FILE]),
        "DRAMATIQ_REDIS_URL",
    ),
    # % endif
    # % if cookiecutter.__queue_rabbitmq
    Server(
        "broker",
        "RabbitMQ",
        lambda it: not it.is_set("RABBITMQ_URL") and it.DRAMATIQ_BROKER == "rabbitmq",
        lambda _, data: rabbitmq.embedded_rabbitmq(data / "rabbitmq", remove=[data / ENV_FILE]),
        "RABBITMQ_URL",
    ),
    # % endif
]


def run_stack(programs: Programs | None = None) -> int:
    """Run until Ctrl-C, SIGTERM or the end of a program; return the exit status.

    The status is 0 after Ctrl-C or SIGTERM. If a program exits by itself, its status is returned.
    """
    # After a power failure, the file of an earlier `dev` still exists, but its servers do not.
    settings = load_settings(dev_server=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    try:
        _check(settings)
        with ExitStack() as stack:
            started = start_servers(settings, DATA, stack)
            if started:
                _write_env_file(started, stack)
            database = settings.database_url.render_as_string(hide_password=False)
            variables = {"DATABASE_URL": database, **started}
            typer.echo("Migrating the database ...")
            # In this process, since `python -m alembic` would import everything a second time.
            url = make_url(variables["DATABASE_URL"])
            upgrade(Config(ROOT / "alembic.ini", attributes={"url": url}), "head")
            programs = programs or default_programs(settings)
            host = "localhost" if settings.HOST in {"0.0.0.0", "::"} else settings.HOST  # noqa: S104 - compared, not bound
            typer.echo(f"Starting {', '.join(programs)} ...")
            typer.echo(f"Documentation: http://{host}:{settings.PORT}{settings.API_PREFIX}/docs")
            typer.echo("Press Ctrl-C to stop.")
            return _run(programs, variables)
    except KeyboardInterrupt:
        typer.echo("Stopped.")
        return 0
    except ServerError as error:
        typer.echo(str(error), err=True)
        return 1


def _check(settings: Settings) -> None:
    if settings.is_deployed:
        raise ServerError(f"`dev` is only for development, but ENV is {settings.ENV}.")
    family = socket.AF_INET6 if ":" in settings.HOST else socket.AF_INET
    try:
        socket.create_server((settings.HOST, settings.PORT), family=family).close()
    except OSError as error:
        message = f"Port {settings.PORT} on {settings.HOST} is already in use. Set another PORT."
        raise ServerError(message) from error


def start_servers(settings: Settings, data: Path, stack: ExitStack) -> dict[str, str]:
    """Start the servers that the settings do not name; return the variables with their URLs."""
    variables: dict[str, str] = {}
    missing = [server for server in SERVERS if server.is_missing(settings)]
    if missing:
        stack.enter_context(locked(data, timeout=0))
    for server in missing:
        typer.echo(f"Starting {server.name} ...")
        try:
            variables[server.variable] = stack.enter_context(server.start(settings, data))
        except ServerError as error:
            if not server.fallback:
                raise
            name, value = server.fallback
            variables[name] = value
            typer.echo(f"{error} Using {name}={value} instead.", err=True)
    return variables


def _write_env_file(variables: Mapping[str, str], stack: ExitStack) -> None:
    """Let commands in other terminals find the servers."""
    # The URLs may contain passwords, so the file is private from the start.
    DEV_ENV_FILE.unlink(missing_ok=True)
    stack.callback(DEV_ENV_FILE.unlink, missing_ok=True)
    DEV_ENV_FILE.touch(mode=0o600)
    DEV_ENV_FILE.write_text("".join(f"{name}={url}\n" for name, url in variables.items()))


def _run(programs: Programs, variables: Mapping[str, str]) -> int:
    """Run the programs until one exits, then stop the others; return its status."""
    colors = {"FORCE_COLOR": "1"} if sys.stdout.isatty() else {}  # their output is a pipe
    environment = {**os.environ, **colors, **variables, "PYTHONUNBUFFERED": "1"}
    width = max(map(len, programs))
    running: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:
        for name, arguments in programs.items():
            prefix = f"{name:{width}} | " if len(programs) > 1 else ""
            running[name] = stack.enter_context(_program(arguments, environment, prefix))
        for process in running.values():
            # Without this, the programs would stop one after the other.
            stack.callback(request_stop, process)
        while True:
            for name, process in running.items():
                if (status := process.poll()) is not None:
                    typer.echo(f"{name} exited with status {status}.", err=True)
                    return status
            time.sleep(0.1)


@contextmanager
def _program(
    arguments: Sequence[str], environment: Mapping[str, str], prefix: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and print its output with the prefix."""
    command = [sys.executable, *arguments]
    with supervised(command, cwd=ROOT, env=environment, output=subprocess.PIPE) as process:
        printer = Thread(target=_print, args=(process.stdout, prefix.encode()), daemon=True)
        printer.start()
        try:
            yield process
        finally:
            request_stop(process)
            process.wait()
            printer.join(timeout=1)  # a daemon of the program may still have the pipe open


def _print(output: IO[bytes], prefix: bytes) -> None:
    with output:
        for line in output:
            sys.stdout.buffer.write(prefix + line.rstrip(b"\n") + b"\n")
            sys.stdout.buffer.flush()
