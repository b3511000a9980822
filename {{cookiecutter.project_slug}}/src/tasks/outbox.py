"""Tasks that are sent if, and only if, a transaction commits.

A row in the transaction that causes the task; the relay sends it. See the transactional outbox in
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
FOLLOWED = "followed"
MAX_BYTES = 256 * 1024


async def enqueue(db: AsyncSession, actor: Actor[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """Call the actor in a worker once the transaction is committed; return the message's id.

    For an actor with `followed=True` that is the id of its task too.

    Raises ValueError for arguments of more than MAX_BYTES.
    """
    return await enqueue_message(db, actor.message(*args, **kwargs))


async def enqueue_message(
    db: AsyncSession, message: Message[Any], *, delay: timedelta = timedelta()
) -> str:
    """As `enqueue`, with options of Dramatiq's, or not before `delay` is over.

    The delay is kept in the database, and may be as long as you like.
    """
    return (await enqueue_messages(db, [message], delay=delay))[0]


async def enqueue_messages(
    db: AsyncSession, messages: Sequence[Message[Any]], *, delay: timedelta = timedelta()
) -> list[str]:
    """As `enqueue_message`, for any number in two statements at most."""
    if isinstance(db, ReadOnlyAsyncSession):
        raise ReadOnlySessionError("This session only reads; take `DbSession` to enqueue.")
    named = await _named(db, messages)
    await OutboxRepository(db).add_all([_encode(message, delay) for message in named], delay=delay)
    db.info[HAS_MESSAGES] = True
    return [message.message_id for message in named]


async def _named(db: AsyncSession, messages: Sequence[Message[Any]]) -> list[Message[Any]]:
    """Give messages to actors that are followed the ids of new tasks."""
    followed = [name for name in (each.actor_name for each in messages) if is_followed(name)]
    ids = iter(await TaskRepository(db).add_all(followed) if followed else ())
    return [
        replace(message, message_id=str(next(ids))) if is_followed(message.actor_name) else message
        for message in messages
    ]


def is_followed(actor_name: str) -> bool:
    """Raises dramatiq.ActorNotFound."""
    return bool(get_broker().get_actor(actor_name).options.get(FOLLOWED))


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
