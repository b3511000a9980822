"""The command group `python cli.py tasks`."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated
from uuid import UUID

import typer
from dramatiq import Message

from src.core.config import get_settings
from src.db import open_database
from src.repositories.task import TaskRepository
from src.tasks.broker import broker
from src.tasks.engine.actors import load_actors
from src.tasks.engine.brokers.base import ERROR, BrokerUnavailableError, DeadLetter

NO_LIMIT = 1_000_000

app = typer.Typer(
    help="Manage background tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
dead = typer.Typer(
    help="Inspect, requeue and purge dead letters: messages that are not retried.",
    no_args_is_help=True,
)
app.add_typer(dead, name="dead")
Ids = Annotated[
    list[str] | None, typer.Argument(help="Message IDs, as `list` shows them.", metavar="ID...")
]
All = Annotated[bool, typer.Option("--all", help="Select all dead letters of all queues.")]


def run(arguments: list[str], name: str) -> None:
    load_actors()  # declares the queues
    try:
        app(arguments, prog_name=name)
    except BrokerUnavailableError as error:
        raise SystemExit(f"Error: {error}") from error


@dead.command("list")
def list_dead(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number per queue.")] = 20,
) -> None:
    """List the dead letters of each queue, newest first."""
    for queue in _queues():
        letters = broker.dead_letters(queue, limit=limit)
        typer.echo(f"Dead letters in queue {queue}: {broker.queue_state(queue).dead}")
        for letter in letters:
            _echo(f"  {letter.id}  {_time(letter)}  {letter.message}  {_error(letter)}")


@dead.command()
def show(
    message_id: Annotated[
        str, typer.Argument(help="Message ID, as `list` shows it.", metavar="ID")
    ],
) -> None:
    """Show the arguments, the error and the traceback of a dead letter."""
    (letter,) = _select([message_id])
    message = letter.message
    typer.echo(f"actor: {message.actor_name}")
    typer.echo(f"queue: {message.queue_name}")
    typer.echo(f"failed at: {_time(letter)}")
    typer.echo(f"args: {json.dumps(message.args)}")
    typer.echo(f"kwargs: {json.dumps(message.kwargs)}")
    typer.echo(f"attempts: {max(1, message.options.get('retries', 0))}")
    _echo(f"error: {_error(letter)}")
    _echo(message.options.get("traceback", ""))


@dead.command()
def requeue(ids: Ids = None, *, select_all: All = False) -> None:
    """Put dead letters back on their queues and reset their retries."""
    _check_selection(ids, select_all=select_all)
    letters = _select(ids)
    # Update the tasks first: a worker skips a message if its task has the status `failed`.
    asyncio.run(_mark_requeued([letter.message for letter in letters]))
    count = sum(broker.requeue_dead(queue, ids or None) for queue in _queues())
    typer.echo(f"Requeued: {count}.")


@dead.command()
def purge(ids: Ids = None, *, select_all: All = False) -> None:
    """Delete dead letters permanently."""
    _check_selection(ids, select_all=select_all)
    _select(ids)
    count = sum(broker.purge_dead(queue, ids or None) for queue in _queues())
    typer.echo(f"Purged: {count}.")


def _check_selection(ids: Sequence[str] | None, *, select_all: bool) -> None:
    if bool(ids) == select_all:
        raise typer.BadParameter("pass either message IDs or --all")


def _select(ids: Sequence[str] | None) -> Sequence[DeadLetter]:
    """Return the dead letters with these ids, or all without ids. Raises SystemExit."""
    letters = [each for queue in _queues() for each in broker.dead_letters(queue, limit=NO_LIMIT)]
    if not ids:
        return letters
    by_id = {letter.id: letter for letter in letters}
    for each in ids:
        if each not in by_id:
            raise SystemExit(f"Error: There is no dead letter with the id {each}.")
    return [by_id[each] for each in ids]


async def _mark_requeued(messages: Sequence[Message[object]]) -> None:
    keys = []
    for message in messages:
        with suppress(ValueError):  # not the id of a task
            keys.append(UUID(message.message_id))
    async with (
        open_database(get_settings().database_url, pool_size=1) as database,
        database.transaction() as db,
    ):
        await TaskRepository(db).mark_requeued(keys)


def _queues() -> Sequence[str]:
    return sorted(broker.get_declared_queues())


def _time(letter: DeadLetter) -> str:
    return letter.died_at.isoformat(timespec="seconds") if letter.died_at else "-"


def _error(letter: DeadLetter) -> str:
    return str(letter.message.options.get(ERROR, "-"))


def _echo(text: object) -> None:
    """Print text that UTF-8 may not be able to represent."""
    typer.echo(str(text).encode(errors="backslashreplace").decode())
