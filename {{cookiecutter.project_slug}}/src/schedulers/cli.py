"""The command group `python cli.py scheduler`."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer

from src.core.config import Settings, get_settings, override_setting
from src.core.logging import configure_logging
from src.core.ports import check_port
from src.db import open_database
from src.schemas.scheduler import SchedulerInfo
from src.services.scheduler import SchedulerService

# Time for running jobs to finish. Orchestrators usually wait 30 seconds before SIGKILL.
DRAIN_SECONDS = 25

app = typer.Typer()


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    *,
    enabled: Annotated[
        bool | None,
        typer.Option(
            "--enabled/--disabled",
            help="Run the scheduler, or exit immediately.  [SCHEDULER_ENABLED]",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port for Prometheus.  [METRICS_PORT]"),
    ] = None,
) -> None:
    """Run scheduled jobs.

    You can run this in several processes. One is the leader and runs the jobs.
    If it dies, another process becomes the leader.
    """
    if context.invoked_subcommand is not None:
        return
    override_setting("SCHEDULER_ENABLED", enabled)
    override_setting("METRICS_PORT", metrics_port)
    settings = get_settings()
    if not settings.SCHEDULER_ENABLED:
        message = "The scheduler is disabled. Set SCHEDULER_ENABLED=true or pass --enabled."
        typer.echo(message, err=True)
        return
    configure_logging(settings)
    check_jobs(settings)
    check_port(settings, "METRICS_PORT")
    from src.schedulers.engine import process  # noqa: PLC0415 - it imports the services of jobs

    asyncio.run(process.run(settings, drain=DRAIN_SECONDS))


def check_jobs(settings: Settings) -> None:
    """Raise SystemExit if a job is invalid. uvicorn would restart its workers again and again."""
    from src.schedulers import jobs, scheduler  # noqa: PLC0415 - they import the services of jobs
    from src.schedulers.engine.job_scheduler import InvalidJobError  # noqa: PLC0415 - see above

    try:
        scheduler.build_scheduler(jobs.setup_jobs, timezone=settings.SCHEDULER_TIMEZONE)
    except InvalidJobError as error:
        raise SystemExit(f"Error: {error}") from error


@app.command()
def jobs(
    runs: Annotated[int, typer.Option(min=0, help="Number of runs to show for each job.")] = 5,
) -> None:
    """Show the leader, and each job with its next tick and its last runs."""
    overview = asyncio.run(_overview(get_settings(), runs=runs))
    for line in _format(overview):
        typer.echo(line)


async def _overview(settings: Settings, *, runs: int) -> SchedulerInfo:
    async with (
        open_database(settings.database_url, pool_size=1) as database,
        database.reads() as session,
    ):
        return await SchedulerService.overview(session, runs=runs)


def _format(overview: SchedulerInfo) -> Iterator[str]:
    leader = overview.leader
    yield f"Leader: {leader.holder}, since {_time(leader.acquired_at)}" if leader else "No leader."
    for job in overview.jobs:
        yield ""
        yield f"{job.id}  {job.trigger}  next: {_time(job.next_tick)}"
        for run in job.runs:
            finished = _time(run.finished_at)
            error = f"  {run.error}" if run.error else ""
            yield f"  {_time(run.tick)}  {run.outcome:9}  finished: {finished}{error}"


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else "-"
