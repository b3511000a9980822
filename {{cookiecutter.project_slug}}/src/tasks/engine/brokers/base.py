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

# Ends of tasks that Dramatiq notes in the options of a message, and those that we add.
ERROR = "error"
DIED_AT = "died_at"
FAILURE_OPTIONS = frozenset({ERROR, DIED_AT, "retries", "traceback", "requeue_timestamp"})
UNREADABLE = "?"  # instead of the actor's name, of a dead letter that is no message of Dramatiq's


class BrokerUnavailableError(Exception):
    """The broker cannot be had just now, and may be in a moment; the message says why."""


@dataclass(frozen=True)
class DeadLetter:
    """A message that no worker will try again by itself."""

    id: str  # names it in a queue's dead letters
    message: Message[Any]
    died_at: datetime | None


@dataclass(frozen=True)
class QueueState:
    waiting: int  # messages that no worker has finished, those that it works on included
    delayed: int
    dead: int
    oldest_seconds: float | None  # how long the first in line waits; None if it cannot be told


class Publisher(Protocol):
    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        """Hand over the messages; once this returns the broker has all of them for good.

        Raises BrokerUnavailableError; then it may have some of them.
        """


class TaskBroker(Broker, ABC):
    """A broker of Dramatiq's that publishes in batches and gives access to dead letters.

    All but `open_publisher` block, and raise BrokerUnavailableError while the server is away.
    """

    @abstractmethod
    def open_publisher(self) -> AbstractAsyncContextManager[Publisher]:
        """Open a publisher for the running loop; it connects when it is first used."""

    @abstractmethod
    def ping(self) -> None:
        """Ask the server for an answer."""

    def warn_if_unsafe(self) -> None:
        """Warn of a server that may lose messages; workers call it when they start."""

    def maintain(self) -> None:
        """Do what the server does not do by itself; workers call it every few seconds."""

    @abstractmethod
    def is_redelivered(self, message: MessageProxy) -> bool:
        """Whether a worker has had the message before, and went away without a word."""

    @abstractmethod
    def queue_state(self, queue_name: str) -> QueueState: ...

    @abstractmethod
    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        """Return the newest ones, the newest first."""

    @abstractmethod
    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """Give the dead letters another life, all unless named; return how many.

        The message is on its queue before it is gone from the dead ones. It has no traces of its
        failure (FAILURE_OPTIONS) then.
        """

    @abstractmethod
    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """Forget dead letters, all unless named; return how many."""


def read_message(body: bytes, queue_name: str, message_id: str) -> Message[Any]:
    """Decode the message, or return one to UNREADABLE that shows the body."""
    try:
        return Message.decode(body)
    except (DecodeError, KeyError, TypeError):  # it is no JSON, or no message
        options = {ERROR: f"It is no message: {body[:200]!r}"}
        return Message(queue_name, UNREADABLE, (), {}, options, message_id=message_id)


def is_named(letter: DeadLetter, ids: Collection[str] | None) -> bool:
    return ids is None or letter.id in ids


def mark_dead(message: MessageProxy, reason: str) -> None:
    """Make a dead letter of the message, once its attempt is over."""
    message.options |= {ERROR: reason, DIED_AT: current_millis()}
    message.fail()


def without_failure_metadata(message: Message[Any]) -> Message[Any]:
    """Return the message as it was before it failed, but sent now: its age counts anew."""
    options = {
        name: value for name, value in message.options.items() if name not in FAILURE_OPTIONS
    }
    return replace(message, options=options, message_timestamp=current_millis())
