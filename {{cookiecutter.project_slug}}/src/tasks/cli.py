"""The command group `python cli.py tasks`."""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer
from dramatiq import Message

import src.tasks.jobs  # noqa: F401 - it declares the queues
from src.core.config import get_settings
from src.db import open_database
from src.repositories.task import TaskRepository
from src.tasks.broker import broker
from src.tasks.engine.brokers.base import ERROR, BrokerUnavailableError, DeadLetter

ALL = 1_000_000

app = typer.Typer(
    help="Inspect and requeue background tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
dead = typer.Typer(
    help="Inspect, requeue and purge dead letters: tasks that failed for good.",
    no_args_is_help=True,
)
app.add_typer(dead, name="dead")
Ids = Annotated[list[str] | None, typer.Argument(help="Ids of dead letters.", metavar="ID...")]
Every = Annotated[bool, typer.Option("--all", help="All of them.")]


def run(arguments: list[str], name: str) -> None:
    try:
        app(arguments, prog_name=name)
    except BrokerUnavailableError as error:
        raise SystemExit(f"Error: {error}") from error


@dead.command("list")
def list_dead(
    limit: Annotated[int, typer.Option(min=1, help="How many of each queue.")] = 20,
) -> None:
    """List dead letters, the newest first."""
    for queue in _queues():
        letters = broker.dead_letters(queue, limit=limit)
        typer.echo(f"{queue}: {broker.queue_state(queue).dead} dead")
        for letter in letters:
            typer.echo(f"  {letter.id}  {_died(letter)}  {letter.message}  {_error(letter)}")


@dead.command()
def show(task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show a dead letter: its arguments, and why it failed."""
    (letter,) = _select([task_id])
    message = letter.message
    typer.echo(f"{message.actor_name}, queue {message.queue_name}, died {_died(letter)}")
    typer.echo(f"args: {json.dumps(message.args)}")
    typer.echo(f"kwargs: {json.dumps(message.kwargs)}")
    typer.echo(f"attempts: {max(1, message.options.get('retries', 0))}")
    typer.echo(f"error: {_error(letter)}")
    typer.echo(message.options.get("traceback", ""))


@dead.command()
def requeue(ids: Ids = None, *, every: Every = False) -> None:
    """Requeue dead letters with a fresh retry budget."""
    letters = _select(_chosen(ids, every=every))
    # First: a worker that starts one would find that its task has failed.
    asyncio.run(_reopen([letter.message for letter in letters]))
    count = sum(broker.requeue_dead(queue, ids or None) for queue in _queues())
    typer.echo(f"Requeued: {count}.")


@dead.command()
def purge(ids: Ids = None, *, every: Every = False) -> None:
    """Delete dead letters."""
    _select(_chosen(ids, every=every))
    count = sum(broker.purge_dead(queue, ids or None) for queue in _queues())
    typer.echo(f"Purged: {count}.")


def _chosen(ids: list[str] | None, *, every: bool) -> list[str] | None:
    """Return None for all."""
    if bool(ids) == every:
        raise typer.BadParameter("name some, or give --all")
    return ids or None


def _select(ids: Sequence[str] | None) -> Sequence[DeadLetter]:
    """Return the dead letters with these ids, or all. Raises SystemExit if one does not exist."""
    letters = [each for queue in _queues() for each in broker.dead_letters(queue, limit=ALL)]
    if ids is None:
        return letters
    by_id = {letter.id: letter for letter in letters}
    for each in ids:
        if each not in by_id:
            raise SystemExit(f"Error: There is no dead letter {each}.")
    return [by_id[each] for each in ids]


async def _reopen(messages: Sequence[Message[object]]) -> None:
    keys = [UUID(message.message_id) for message in messages]
    async with (
        open_database(get_settings().database_url, pool_size=1) as database,
        database.transaction() as db,
    ):
        await TaskRepository(db).reopen(keys)


def _queues() -> Sequence[str]:
    return sorted(broker.get_declared_queues())


def _died(letter: DeadLetter) -> str:
    return letter.died_at.isoformat(timespec="seconds") if letter.died_at else "-"


def _error(letter: DeadLetter) -> str:
    return str(letter.message.options.get(ERROR, "-"))
