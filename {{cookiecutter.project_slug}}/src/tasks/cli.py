"""What `python cli.py tasks dead` does with tasks that failed for good."""

import asyncio
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from dramatiq import Message

import src.tasks.jobs  # noqa: F401 - it declares the queues
from src.core.config import get_settings
from src.db import open_database
from src.repositories.task import TaskRepository
from src.tasks.broker import broker
from src.tasks.engine.brokers.base import ERROR, BrokerUnavailableError, DeadLetter

ALL = 1_000_000


class DeadLetterError(SystemExit):
    """The command cannot be carried out, and ends with the message and status 1."""


def list_lines(*, limit: int) -> Iterator[str]:
    """Raises DeadLetterError."""
    with _naming_outage():
        for queue in _queues():
            letters = broker.dead_letters(queue, limit=limit)
            yield f"{queue}: {broker.queue_state(queue).dead} dead"
            for letter in letters:
                yield f"  {letter.id}  {_died(letter)}  {letter.message}  {_error(letter)}"


def show_lines(task_id: str) -> Iterator[str]:
    """Raises DeadLetterError."""
    with _naming_outage():
        letter = _find(task_id)
    message = letter.message
    yield f"{message.actor_name}, queue {message.queue_name}, died {_died(letter)}"
    yield f"args: {json.dumps(message.args)}"
    yield f"kwargs: {json.dumps(message.kwargs)}"
    yield f"attempts: {max(1, message.options.get('retries', 0))}"
    yield f"error: {_error(letter)}"
    yield message.options.get("traceback", "")


def requeue(ids: Collection[str] | None) -> str:
    """Have them done once more, all unless named; say how many.

    Raises DeadLetterError.
    """
    with _naming_outage():
        chosen = _chosen(ids)
        # First: a worker that takes one up would find that its task is over.
        asyncio.run(_reopen(chosen))
        count = sum(broker.requeue_dead(queue, ids) for queue in _queues())
    return f"Requeued: {count}."


def purge(ids: Collection[str] | None) -> str:
    """Raises DeadLetterError."""
    with _naming_outage():
        _chosen(ids)
        count = sum(broker.purge_dead(queue, ids) for queue in _queues())
    return f"Purged: {count}."


@contextmanager
def _naming_outage() -> Iterator[None]:
    try:
        yield
    except BrokerUnavailableError as error:
        raise DeadLetterError(f"Error: {error}") from error


def _queues() -> Sequence[str]:
    return sorted(broker.get_declared_queues())


def _letters() -> list[DeadLetter]:
    return [letter for queue in _queues() for letter in broker.dead_letters(queue, limit=ALL)]


def _find(task_id: str) -> DeadLetter:
    for letter in _letters():
        if letter.id == task_id:
            return letter
    raise DeadLetterError(f"Error: There is no dead letter {task_id}.")


def _chosen(ids: Collection[str] | None) -> list[Message[object]]:
    letters = {letter.id: letter.message for letter in _letters()}
    for each in ids or ():
        if each not in letters:
            raise DeadLetterError(f"Error: There is no dead letter {each}.")
    return [message for key, message in letters.items() if ids is None or key in ids]


async def _reopen(messages: Sequence[Message[object]]) -> None:
    settings = get_settings()
    keys = [UUID(message.message_id) for message in messages]
    async with (
        open_database(settings.database_url, pool_size=1) as database,
        database.transaction() as db,
    ):
        await TaskRepository(db).reopen(keys)


def _died(letter: DeadLetter) -> str:
    return letter.died_at.isoformat(timespec="seconds") if letter.died_at else "-"


def _error(letter: DeadLetter) -> str:
    return str(letter.message.options.get(ERROR, "-"))
