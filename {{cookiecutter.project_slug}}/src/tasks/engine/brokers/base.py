"""What the service asks of a broker besides what Dramatiq does."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from dramatiq import DecodeError, Message
from dramatiq.broker import Broker, MessageProxy
from dramatiq.common import current_millis

# The options of a message in which we, and Dramatiq, keep how it failed.
ERROR = "error"
DIED_AT = "died_at"
FAILURE_OPTIONS = frozenset({ERROR, DIED_AT, "retries", "traceback", "requeue_timestamp"})
UNREADABLE = "?"  # the actor's name of a dead letter that is no message of Dramatiq's


class BrokerUnavailableError(Exception):
    """The broker's server does not work at the moment; the message says why."""


@dataclass(frozen=True)
class DeadLetter:
    id: str  # names it in a queue's dead letters
    message: Message[Any]
    died_at: datetime | None


@dataclass(frozen=True)
class QueueState:
    waiting: int  # messages that no worker has finished, those that it works on included
    delayed: int
    dead: int
    oldest_seconds: float | None  # how long the first in line waits; None if it is not known


class Publisher(Protocol):
    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        """Publish the messages; once this returns the broker has stored all of them.

        Raises BrokerUnavailableError; then it may have some of them.
        """


class TaskBroker(Broker, ABC):
    """A broker of Dramatiq's that publishes in batches and gives access to dead letters.

    All methods but `open_publisher` block, and raise BrokerUnavailableError.
    """

    @abstractmethod
    def open_publisher(self) -> AbstractAsyncContextManager[Publisher]:
        """Open a publisher for the running loop; it connects when it is first used."""

    @abstractmethod
    def ping(self) -> None:
        """Check that the server responds."""

    def warn_if_unsafe(self) -> None:
        """Warn of a server that may lose messages; workers call it when they start."""

    def maintain(self) -> None:
        """Do what the server does not do by itself; workers call it every few seconds."""

    @abstractmethod
    def is_redelivered(self, message: MessageProxy) -> bool:
        """Whether the message was delivered before, to a worker that died."""

    @abstractmethod
    def queue_state(self, queue_name: str) -> QueueState: ...

    @abstractmethod
    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        """Return the newest ones, the newest first."""

    @abstractmethod
    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """Put dead letters back on the queue, all unless named; return how many.

        Each is on the queue before it is removed from the dead-letter queue. It has none of the
        FAILURE_OPTIONS any more. Those that are no messages stay.
        """

    @abstractmethod
    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """Delete dead letters, all unless named; return how many."""


def read_message(body: bytes, queue_name: str, message_id: str) -> Message[Any]:
    """Decode the message; for a body that is none return one that shows it, to UNREADABLE."""
    try:
        return Message.decode(body)
    except (DecodeError, KeyError, TypeError):  # it is no JSON, or no message
        options = {ERROR: f"It is no message: {body[:200]!r}"}
        return Message(queue_name, UNREADABLE, (), {}, options, message_id=message_id)


def is_named(letter: DeadLetter, ids: Collection[str] | None) -> bool:
    return ids is None or letter.id in ids


def mark_dead(message: MessageProxy, reason: str) -> None:
    """Let the message become a dead letter when its attempt ends."""
    message.options |= {ERROR: reason, DIED_AT: current_millis()}
    message.fail()


def without_failure_metadata(message: Message[Any]) -> Message[Any]:
    """Return the message as it was before it failed, as if it were sent now."""
    options = {
        name: value for name, value in message.options.items() if name not in FAILURE_OPTIONS
    }
    return replace(message, options=options, message_timestamp=current_millis())
