"""The transactional outbox: a message is sent if, and only if, its transaction commits.

Enqueueing adds a row in the transaction, and a relay sends the message after the commit. See
https://microservices.io/patterns/data/transactional-outbox.html.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

from dramatiq import Actor, ActorNotFound, Message, get_broker, get_encoder
from dramatiq.broker import MessageProxy
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.trace import principal_id, request_id, traceparent
from src.db.session import ReadOnlyAsyncSession, ReadOnlySessionError
from src.repositories.task import OutboxRepository, TaskRepository

P = ParamSpec("P")
R = TypeVar("R")

HAS_MESSAGES = "outbox_has_messages"  # key in `session.info`
PRINCIPAL = "principal"
REQUEST_ID = "request_id"
TRACEPARENT = "traceparent"
TRACKED = "tracked"
MAX_BYTES = 256 * 1024

_signature = lru_cache(inspect.signature)


async def enqueue(db: AsyncSession, actor: Actor[P, R], *args: P.args, **kwargs: P.kwargs) -> str:
    """Enqueue a task that a worker runs after the transaction commits. Return the message id.

    If the actor has `tracked=True`, this is also the task id. Raises TypeError if the arguments do
    not fit the actor or are not JSON, and ValueError if the message is larger than MAX_BYTES.
    """
    return (await enqueue_messages(db, [actor.message(*args, **kwargs)]))[0]


async def enqueue_message(
    db: AsyncSession, message: Message[Any], *, delay: timedelta = timedelta()
) -> str:
    """Enqueue a message that has Dramatiq options or a delay. The delay has no limit."""
    return (await enqueue_messages(db, [message], delay=delay))[0]


async def enqueue_messages(
    db: AsyncSession, messages: Sequence[Message[Any]], *, delay: timedelta = timedelta()
) -> list[str]:
    """Enqueue any number of messages with at most two statements. Return the message ids."""
    if isinstance(db, ReadOnlyAsyncSession):
        raise ReadOnlySessionError("This session is read-only. Use `DbSession` to enqueue.")
    for message in messages:
        check(message)
    tracked = [message.actor_name for message in messages if is_tracked(message.actor_name)]
    task_ids = iter(await TaskRepository(db).add_all(tracked) if tracked else ())
    messages = [
        replace(message, message_id=str(next(task_ids)))
        if is_tracked(message.actor_name)
        else message
        for message in messages
    ]
    await OutboxRepository(db).add_all([_encode(each, delay) for each in messages], delay=delay)
    db.info[HAS_MESSAGES] = True  # the relay of this process sends them after the commit
    return [message.message_id for message in messages]


def is_tracked(actor_name: str) -> bool:
    """Return False for an unknown actor."""
    return bool(get_broker().get_actor(actor_name).options.get(TRACKED))


def check(message: Message[Any]) -> None:
    """Raise the errors that a worker would otherwise raise later."""
    if "delay" in message.options:
        raise TypeError("A message has no `delay`: pass it to enqueue_message(), as a timedelta.")
    name = message.actor_name
    if name not in get_broker().actors:
        raise ActorNotFound(name)
    arguments = bind(get_broker().get_actor(name), message)
    for argument, value in arguments.items():
        try:
            json.dumps(value)
            _check_keys(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"The argument {argument} of {name} cannot be stored: {error}."
                " Pass JSON, for example str(id) or value.isoformat()."
            ) from None


def bind(actor: Actor[..., Any], message: Message[Any] | MessageProxy) -> Mapping[str, Any]:
    """Return the arguments by name. Raises TypeError if they do not fit the actor."""
    try:
        return _signature(actor.fn).bind(*message.args, **message.kwargs).arguments
    except TypeError as error:
        text = f"The arguments do not fit the actor {actor.actor_name}: {error}."
        raise TypeError(text) from None


def _check_keys(value: Any) -> None:
    """Raises TypeError if a key is not text: JSON would change it into text."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"JSON has no {type(key).__name__} keys")
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for each in value:
        _check_keys(each)


def _encode(message: Message[Any], delay: timedelta) -> bytes:
    origin = {
        PRINCIPAL: principal_id.get(),
        REQUEST_ID: request_id.get(),
        TRACEPARENT: traceparent.get(),
    }
    fields = message.asdict()  # `message.copy()` costs more
    fields["options"] = message.options | {key: value for key, value in origin.items() if value}
    fields["message_timestamp"] += int(delay.total_seconds() * 1000)
    body = get_encoder().encode(fields)
    if len(body) > MAX_BYTES:
        raise ValueError(
            f"The message to {message.actor_name} has {len(body)} bytes; the limit is {MAX_BYTES}."
            " Store the data in a table and pass its key."
        )
    return body
