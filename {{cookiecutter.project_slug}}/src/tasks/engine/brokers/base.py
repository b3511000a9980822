"""The broker interface: decoding, publishing in batches, dead letters and queue state."""

import asyncio
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, cast

import structlog
from dramatiq import Actor, DecodeError, JSONEncoder, Message
from dramatiq.broker import Broker, MessageProxy
from dramatiq.common import current_millis, dq_name, q_name

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Message options that record a failure. Dramatiq sets the last three of FAILURE_OPTIONS.
RETRY_DELAY = "retry_delay"
ERROR = "error"
DIED_AT = "died_at"
NOT_RUNNABLE_SINCE = "not_runnable_since"
FAILURE_OPTIONS = frozenset(
    {RETRY_DELAY, ERROR, DIED_AT, NOT_RUNNABLE_SINCE, "retries", "traceback", "requeue_timestamp"}
)
# Smallest and largest values of the options of actors and messages that are numbers
_LAST_TIME = 253_402_300_799_999  # milliseconds, the end of the year 9999
_NOT_NEGATIVE = ("max_retries", "min_backoff", "max_backoff", "max_age", "retries", RETRY_DELAY)
_RANGES = {
    "priority": (-math.inf, math.inf),
    "time_limit": (1, math.inf),
    **dict.fromkeys(_NOT_NEGATIVE, (0, math.inf)),
    **dict.fromkeys(("eta", "requeue_timestamp", DIED_AT, NOT_RUNNABLE_SINCE), (0, _LAST_TIME)),
}
_FIELDS = {
    "queue_name": str,
    "actor_name": str,
    "message_id": str,
    "message_timestamp": int,
    "args": list,
    "kwargs": dict,
    "options": dict,
}
# Milliseconds in which a message of another release waits for a process that can send or run it
PATIENCE = 3_600_000
BURST = 20
UNREADABLE = "?"  # actor name of a dead letter whose body cannot be decoded
# What Dramatiq's worker and middleware read of an actor
_UNKNOWN_ACTOR = SimpleNamespace(priority=0, options={})


class BrokerUnavailableError(Exception):
    """The broker's server is unavailable. The message gives the cause."""


@dataclass(frozen=True)
class DeadLetter:
    id: str  # the message id, or a substitute if the body cannot be decoded
    message: Message[Any]
    died_at: datetime | None


@dataclass(frozen=True)
class QueueState:
    waiting: int  # due messages that no worker has finished
    delayed: int
    dead: int
    oldest_seconds: float | None  # age of the oldest waiting message; None if unknown


class Publisher(Protocol):
    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        """Publish the messages. The broker has stored all of them when this returns.

        Raises BrokerUnavailableError. The broker may then have stored some of them.
        """


class TaskBroker(Broker, ABC):
    """A Dramatiq broker that publishes in batches and gives access to dead letters.

    The methods below raise BrokerUnavailableError. All except `open_publisher` block.
    """

    def declare_actor(self, actor: Actor[Any, Any]) -> None:
        """Raises ValueError if a worker could not run the actor as it is written."""
        for problem in _problems(actor):
            raise ValueError(f"The actor {actor.actor_name} {problem}.")
        super().declare_actor(actor)

    def get_actor(self, actor_name: str) -> Actor[Any, Any]:
        """Return the actor, or a substitute for the middleware, which then postpones the message.

        Dramatiq would make the message of an unknown actor a dead letter. `actors` has only those
        that are known.
        """
        return self.actors.get(actor_name) or cast(Any, _UNKNOWN_ACTOR)

    @abstractmethod
    def open_publisher(self) -> AbstractAsyncContextManager[Publisher]:
        """Open a publisher for the running event loop. It connects on first use."""

    @abstractmethod
    def ping(self) -> None:
        """Check that the server responds."""

    def eviction_policy(self) -> str:
        """Return the name of the policy if the server may evict messages, else an empty string."""
        return ""

    def warn_if_unsafe(self) -> None:
        """Log a warning if the server may lose messages. Workers call this when they start."""
        if policy := self.eviction_policy():
            log.warning("broker_eviction_enabled", maxmemory_policy=policy, required="noeviction")

    def maintain(self) -> None:
        """Run maintenance that the server does not do. Workers call this every few seconds."""

    @abstractmethod
    def is_redelivered(self, message: MessageProxy) -> bool:
        """Return whether the message was delivered before, to a worker that died."""

    @abstractmethod
    def has_workers(self, queue_name: str) -> bool:
        """Return whether a worker is running that processes the queue."""

    @abstractmethod
    def queue_state(self, queue_name: str) -> QueueState: ...

    @abstractmethod
    def add_dead_letter(self, queue_name: str, letter_id: str, body: bytes) -> None:
        """Store a message, or a body that cannot be decoded, as a dead letter."""

    @abstractmethod
    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        """Return the newest dead letters, newest first."""

    @abstractmethod
    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """Put the dead letters with these ids, or all, back on the queue. Return their number.

        Each message is on the queue before it is removed from the dead-letter queue, and loses
        its FAILURE_OPTIONS. Dead letters that cannot be decoded are left in place.
        """

    @abstractmethod
    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """Delete the dead letters with these ids, or all. Return their number."""


def _problems(actor: Actor[Any, Any]) -> Iterator[str]:
    module = actor.fn.__module__ or ""
    if module.startswith("src.") and not module.startswith("src.tasks."):
        yield f"is in {module}, which workers do not import: move it to a module in src/tasks"
    if inspect.isgeneratorfunction(actor.fn) or inspect.isasyncgenfunction(actor.fn):
        yield "contains `yield`, so a worker would not run it: use `return`"
    options = {"priority": actor.priority, **actor.options}
    for name in _invalid_numbers(options):
        value = options[name]
        yield f"has {name}={value!r}: pass a positive number, in milliseconds if it is a time"
    throws = options.get("throws", ())
    errors = throws if isinstance(throws, tuple) else (throws,)
    if not all(isinstance(error, type) for error in errors):
        yield f"has throws={throws!r}: pass an exception class or a tuple of them"


def _invalid_numbers(options: Mapping[str, Any]) -> Iterator[str]:
    for name in options.keys() & _RANGES.keys():
        value, (smallest, largest) = options[name], _RANGES[name]
        if value is None and name in {"max_retries", "max_age"}:
            continue  # no limit
        if not isinstance(value, int | float) or not smallest <= value <= largest:
            yield name


async def in_bursts(values: Sequence[T]) -> AsyncGenerator[T]:
    """Yield the values. Requests of the process run after each BURST, which takes a millisecond."""
    for number, value in enumerate(values):
        if number % BURST == 0:
            await asyncio.sleep(0)
        yield value


class CheckedEncoder(JSONEncoder):
    """Also rejects messages that a worker could neither run nor make a dead letter."""

    def decode(self, data: bytes) -> dict[str, Any]:
        try:
            fields = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"It is not JSON: {error}", data, error) from None
        for problem in _faults(fields):
            raise DecodeError(problem, data, None)
        return fields  # type: ignore[no-any-return]  # a dict, as _faults has checked


def _faults(fields: Any) -> Iterator[str]:
    if not isinstance(fields, dict):
        yield "It is not a JSON object."
        return
    for name, kind in _FIELDS.items():
        value = fields.get(name)
        is_valid = isinstance(value, kind)
        if not is_valid or (isinstance(value, str) and not (value and value.isprintable())):
            yield f"Its {name} is missing or invalid."
            return
    if not 0 <= fields["message_timestamp"] <= _LAST_TIME:
        yield "Its message_timestamp is invalid."
    for name in _invalid_numbers(fields["options"]):
        yield f"Its option {name} is invalid."
    if fields["options"].get("throws"):
        yield "Its option throws is invalid: it cannot be JSON."


def read_entry(body: bytes, queue_name: str) -> Message[Any] | None:
    """Decode an entry of a queue of the broker. Return None if it is not a message.

    The queue may differ from the one in the message, because someone has moved the entry. Dramatiq
    looks for the consumer in the message.
    """
    try:
        message = Message.decode(body)
    except DecodeError as error:
        log.warning("message_rejected", queue=queue_name, cause=fault(error))
        return None
    if queue_name == dq_name(q_name(queue_name)):
        message.options.setdefault("eta", 0)
    if message.queue_name == queue_name:
        return message
    return replace(message, queue_name=queue_name)  # costs as much as decoding


def read_message(body: bytes, queue_name: str = "", message_id: str | None = None) -> Message[Any]:
    """Decode a message. If that fails, return a substitute with the actor name UNREADABLE.

    The substitute has this queue and id. By default, the same body has the same id.
    """
    try:
        return Message.decode(body)
    except DecodeError as error:
        options = {ERROR: f"{fault(error)} {body[:200]!r}"}
        message_id = message_id or sha256(body).hexdigest()[:32]
        return Message(queue_name, UNREADABLE, (), {}, options, message_id=message_id)


def fault(error: DecodeError) -> str:
    """Say why a message cannot be decoded, without its content."""
    return f"The message cannot be decoded. {error.error or error}"


def is_selected(letter: DeadLetter, ids: Collection[str] | None) -> bool:
    return ids is None or letter.id in ids


def mark_dead(message: MessageProxy, reason: str) -> None:
    """Make the message a dead letter when its attempt ends."""
    message.options |= {ERROR: reason, DIED_AT: current_millis()}
    message.fail()


def without_failure_metadata(message: Message[Any]) -> Message[Any]:
    """Return a copy without FAILURE_OPTIONS, with the current time as its time of sending."""
    options = {
        name: value for name, value in message.options.items() if name not in FAILURE_OPTIONS
    }
    return replace(message, options=options, message_timestamp=current_millis())
