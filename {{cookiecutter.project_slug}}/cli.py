"""The command line of the service: `python cli.py --help`."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated

import typer
import uvicorn
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from src import (
    db,
    # % if cookiecutter.scheduler
    schedulers,
    # % endif
)
from src.auth import cli as keys
from src.core import config
from src.core.logging import configure_logging
from src.core.ports import check_metrics_port, check_port
from src.db import autogenerate
from src.db.setup import create_database

# Below the 30 seconds that orchestrators usually grant between SIGTERM and SIGKILL.
SHUTDOWN_SECONDS = 25
# Of the API after SHUTDOWN_DELAY_SECONDS. With the default, this makes 25 seconds too.
REQUEST_SECONDS = 15
RELOAD_SECONDS = 1  # an open stream or WebSocket must not delay a reload
# Longer than proxies keep an idle connection (nginx and AWS: 60 s). Otherwise they may send a
# request when the server closes it.
KEEP_ALIVE_SECONDS = 75

# % if cookiecutter.cache_backend != "none"
SEPARATE_CACHES = (
    "Warning: with CACHE_BACKEND_TYPE=memory each worker has a separate cache. After a change,"
    " other workers may return the old value for up to {} s."
)

# % endif
app = typer.Typer(
    help="Run the service and its processes, and manage its database.",
    no_args_is_help=True,
    add_completion=False,  # completion would be installed for `python`, not for this file
    pretty_exceptions_enable=False,
)
migrations = typer.Typer(
    help="Create the database; write, apply and undo migrations.", no_args_is_help=True
)
# % if cookiecutter.scheduler
app.add_typer(schedulers.cli.app, name="scheduler")
# % endif
app.add_typer(migrations, name="db")
app.add_typer(keys.app, name="keys")


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to bind to.  [HOST]")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to bind to; 0 selects a free one.  [PORT]"),
    ] = None,
    *,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when code changes.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of API processes.")] = 1,
    # % if cookiecutter.scheduler
    scheduler_enabled: Annotated[
        bool | None,
        typer.Option(
            "--scheduler-enabled/--scheduler-disabled",
            help="Run scheduled jobs in this process, or do not.  [SCHEDULER_ENABLED]",
        ),
    ] = None,
    # % endif
) -> None:
    """Serve the API.

    The variable in brackets sets the same value, in the environment or in .env. The option
    overrides it.
    """
    if reload and workers > 1:
        raise typer.BadParameter("use either --reload or --workers, not both")
    # % if cookiecutter.scheduler
    config.override_setting("SCHEDULER_ENABLED", scheduler_enabled)
    # % endif
    config.override_setting("SHUTDOWN_DELAY_SECONDS", 0 if reload else None)
    config.override_setting("PORT", port)
    settings = config.get_settings()
    configure_logging(settings)
    # % if cookiecutter.cache_backend != "none"
    if workers > 1 and settings.CACHE_BACKEND_TYPE == "memory":
        typer.echo(SEPARATE_CACHES.format(settings.CACHE_TTL_SECONDS), err=True)
    # % endif
    # % if cookiecutter.scheduler
    if settings.SCHEDULER_ENABLED:
        schedulers.cli.check_jobs(settings)
    # % endif
    check_metrics_port(settings)
    check_port(settings, "METRICS_PORT")
    with _metrics_folder() if workers > 1 else nullcontext():
        uvicorn.run(
            "main:app",
            host=host or settings.HOST,
            port=settings.PORT,
            reload=reload,
            reload_dirs=[str(config.ROOT / "src")] if reload else None,
            workers=workers,
            lifespan="on",
            log_config=None,
            timeout_graceful_shutdown=RELOAD_SECONDS if reload else REQUEST_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )


@contextmanager
def _metrics_folder() -> Iterator[None]:
    """Share metrics between processes through files, so that each process can report the total."""
    with tempfile.TemporaryDirectory(prefix="metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


@app.command()
def dev() -> None:
    """Run the whole service for development, with reload.

    Starts each server whose address is not set (PostgreSQL unless POSTGRES_HOST or DATABASE_URL
    is set), runs migrations, and starts the service. Data is stored in .data/. Ctrl-C stops
    everything.
    """
    try:
        from dev.stack import run_stack  # noqa: PLC0415 - not installed in production
    except ModuleNotFoundError:
        typer.echo(
            "`dev` needs the packages of requirements-dev.txt and the folder dev/.", err=True
        )
        raise typer.Exit(1) from None
    raise typer.Exit(run_stack())


@app.command()
def doctor() -> None:
    """Check settings, servers, migrations and ports.

    Run this first if something does not work. It prints a line for each check: `ok`, `failed`
    with what to do, or `skipped` with the reason. The status is 1 if a check failed.

    It changes nothing. Servers that `python cli.py dev` starts may be off.
    """
    from src import doctor as checks  # noqa: PLC0415 - no other command needs it

    try:
        results = asyncio.run(checks.examine(config.get_settings()))
    except config.InvalidSettingsError as error:
        results = [("settings", "failed", f"{error}\nThe other checks need valid settings.")]
    for result in results:
        typer.echo(checks.format_result(*result))
    raise typer.Exit(any(state == "failed" for _, state, _ in results))


# % if cookiecutter.__queue
@app.command()
def worker(
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes.  [DRAMATIQ_PROCESSES]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Concurrent tasks per process.  [DRAMATIQ_THREADS]")
    ] = None,
    queues: Annotated[str, typer.Option(help="Names of queues, such as a,b. Default: all.")] = "",
    health_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port for health checks and metrics; 0 is a free one.  [DRAMATIQ_HEALTH_PORT]",
        ),
    ] = None,
    *,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when code changes.")] = False,
) -> None:
    """Run background tasks.

    Press Ctrl-C once, or send SIGTERM once, to stop. Running tasks get 25 seconds to
    finish.
    """
    config.override_setting("DRAMATIQ_HEALTH_PORT", health_port)
    settings = config.get_settings()
    configure_logging(settings)
    with _metrics_folder():
        from src import worker as workers  # noqa: PLC0415 - no other command needs Dramatiq

        check_port(settings, "DRAMATIQ_HEALTH_PORT")
        run = workers.run_with_reload if reload else workers.run
        status = run(
            processes=processes or settings.DRAMATIQ_PROCESSES,
            threads=threads or settings.DRAMATIQ_THREADS,
            queues=[name.strip() for name in queues.split(",") if name.strip()],
            shutdown_seconds=SHUTDOWN_SECONDS,
        )
    raise typer.Exit(status)


# The commands are imported on use, since their imports make every other command start slower.
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def tasks(context: typer.Context) -> None:
    """Manage background tasks."""
    from src.tasks import cli as commands  # noqa: PLC0415 - see above

    commands.run(context.args, context.command_path)


# % endif
# % if cookiecutter.__users
@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def users(context: typer.Context) -> None:
    """Manage accounts."""
    from src.auth import users_cli  # noqa: PLC0415 - no other command needs it

    users_cli.run(context.args, context.command_path)


# % endif
@migrations.command()
def migrate(
    revision: Annotated[str, typer.Option(help="Target revision; `+1` is the next one.")] = "head",
) -> None:
    """Apply migrations.

    Several replicas may run this at the same time: one migrates, the others wait.
    """
    command.upgrade(_alembic_config(), revision)
    _print_revision()


@migrations.command()
def downgrade(
    revision: Annotated[
        str, typer.Option(help="Target revision; `base` undoes all migrations.")
    ] = "-1",
) -> None:
    """Undo migrations; by default, only the last one."""
    command.downgrade(_alembic_config(), revision)
    _print_revision()


@migrations.command()
def revision(
    message: Annotated[
        str, typer.Option("--message", "-m", help="Short description of the change.")
    ],
    *,
    empty: Annotated[
        bool, typer.Option("--empty", help="Do not compare; write an empty migration.")
    ] = False,
) -> None:
    """Generate a migration by comparing the models with the database."""
    if empty:
        command.revision(_alembic_config(), message)
    elif not autogenerate.write_migration(_alembic_config(), message):
        typer.echo("The models match the database: no migration is needed.")


@migrations.command()
def init() -> None:
    """Create the database if it is missing, then apply all migrations."""
    url = config.get_settings().database_url
    created = asyncio.run(create_database(url))
    typer.echo(f"Database {url.database} {'created' if created else 'already exists'}.")
    migrate()


def _print_revision() -> None:
    typer.echo("Current revision: ", nl=False)
    command.current(_alembic_config())


def _alembic_config() -> Config:
    return Config(config.ROOT / "alembic.ini")


def main() -> None:
    try:
        app()
    except (CommandError, db.DatabaseUnavailableError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
