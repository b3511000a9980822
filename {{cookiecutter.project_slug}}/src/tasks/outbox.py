"""Messages that are sent if, and only if, the transaction commits that enqueues them.

The transactional outbox: a message is a row of that transaction, and a relay sends it. See
https://microservices.io/patterns/data/transactional-outbox.html.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from asgi_correlation_id import correlation_id
from dramatiq import Actor, Message, get_broker
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.trace import traceparent
from src.db.session import ReadOnlyAsyncSession, ReadOnlySessionError
from src.repositories.task import OutboxRepository, TaskRepository

P = ParamSpec("P")
R = TypeVar("R")

HAS_MESSAGES = "outbox_has_messages"  # in a session's `info`
REQUEST_ID = "request_id"
TRACEPARENT = "traceparent"
TRACKED = "tracked"
MAX_BYTES = 256 * 1024


async def enqueue(db: AsyncSession, actor: Actor[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """Call the actor in a worker once the transaction commits; return the message's id.

    For an actor with `tracked=True` it is the id of the task too. Raises ValueError for arguments
    of more than MAX_BYTES.
    """
    return (await enqueue_messages(db, [actor.message(*args, **kwargs)]))[0]


async def enqueue_message(
    db: AsyncSession, message: Message[Any], *, delay: timedelta = timedelta()
) -> str:
    """Enqueue a message with options of Dramatiq's, or to send after a delay, which has no limit."""
    return (await enqueue_messages(db, [message], delay=delay))[0]


async def enqueue_messages(
    db: AsyncSession, messages: Sequence[Message[Any]], *, delay: timedelta = timedelta()
) -> list[str]:
    """Enqueue any number of messages with two statements at most; return their ids."""
    if isinstance(db, ReadOnlyAsyncSession):
        raise ReadOnlySessionError("This session only reads; take `DbSession` to enqueue.")
    tracked = [message.actor_name for message in messages if is_tracked(message.actor_name)]
    task_ids = iter(await TaskRepository(db).add_all(tracked) if tracked else ())
    messages = [
        replace(message, message_id=str(next(task_ids)))
        if is_tracked(message.actor_name)
        else message
        for message in messages
    ]
    await OutboxRepository(db).add_all([_encode(each, delay) for each in messages], delay=delay)
    db.info[HAS_MESSAGES] = True  # a relay of this process sends them when the session commits
    return [message.message_id for message in messages]


def is_tracked(actor_name: str) -> bool:
    """Raises dramatiq.ActorNotFound."""
    return bool(get_broker().get_actor(actor_name).options.get(TRACKED))


def _encode(message: Message[Any], delay: timedelta) -> bytes:
    origin = {REQUEST_ID: correlation_id.get(), TRACEPARENT: traceparent.get()}
    options = {name: value for name, value in origin.items() if value}
    due = message.message_timestamp + int(delay.total_seconds() * 1000)
    body = replace(message.copy(options=options), message_timestamp=due).encode()
    if len(body) > MAX_BYTES:
        raise ValueError(
            f"A message to {message.actor_name} has {len(body)} bytes, and may have {MAX_BYTES}:"
            " put the data in a table, and send the key."
        )
    return body
