"""RabbitMQ as the broker.

Dramatiq has three queues for each of ours: `default`, `default.DQ` for messages that are due later,
and `default.XQ` for dead letters. Here they are quorum queues, and a message leaves one of them
only when the next has confirmed it.
"""

# mypy: disallow-untyped-calls=False
# Dramatiq's own broker, which is extended here, has few annotations.

import heapq
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pika
import structlog
from dramatiq import Middleware
from dramatiq.broker import MessageProxy
from dramatiq.brokers.rabbitmq import DEAD_MESSAGE_TTL, RabbitmqBroker, _RabbitmqConsumer
from dramatiq.common import current_millis, dq_name, q_name, xq_name
from dramatiq.errors import BrokerConnectionError, ConnectionClosed
from pika.exceptions import AMQPChannelError, AMQPConnectionError, AMQPError, ChannelClosedByBroker

from src.tasks.engine.brokers.base import (
    DIED_AT,
    UNREADABLE,
    DeadLetter,
    Publisher,
    QueueState,
    TaskBroker,
    is_named,
    read_message,
    without_failure_metadata,
)
from src.tasks.engine.brokers.rabbitmq_publisher import (
    ANSWER_SECONDS,
    CLOSE_SECONDS,
    RabbitmqPublisher,
    reason,
    send,
    unavailable,
)
from src.tasks.engine.dramatiq_patches import connection_errors

log = structlog.get_logger(__name__)

# Seconds; the URL may have others. A server that hangs is noticed after a heartbeat and five.
CONNECTION = {
    "heartbeat": "15",
    "blocked_connection_timeout": "5",
    "socket_timeout": "3",
    "stack_timeout": "5",
}
# RabbitMQ 4 drops a message after 20 deliveries, which restarts of workers and looks at dead
# letters may use up.
DELIVERY_LIMIT = 1_000_000
# Milliseconds that a worker may keep a message, be it at work or waiting for its time. RabbitMQ's
# own limit is half an hour; before 3.12 it cannot be set here.
CONSUMER_TIMEOUT = 7 * 86_400_000
WORK_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-consumer-timeout": CONSUMER_TIMEOUT,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",  # the strategy asks for it; there is no limit to overflow
}
DEAD_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-message-ttl": DEAD_MESSAGE_TTL,
}

MAX_PREFETCH = 1000  # dead letters that are in memory at once
_NOT_FOUND, _LOCKED = 404, 405
_PAUSE = 0.02
_LONG_AGO = datetime.min.replace(tzinfo=UTC)

_Taken = Iterator[tuple[DeadLetter, Callable[[], None]]]  # and what removes each


class RabbitmqConsumer(_RabbitmqConsumer):
    broker: "RabbitmqTaskBroker"

    def __init__(self, *arguments: Any) -> None:
        with connection_errors(OSError):  # the name of the host is not known, say
            super().__init__(*arguments)

    def __next__(self) -> MessageProxy | None:
        message = super().__next__()
        if message is not None:
            message.consumer = self
        return message  # type: ignore[no-any-return]  # no types there

    def ack(self, message: MessageProxy) -> None:
        if self._has_delivered(message):
            super().ack(message)

    def nack(self, message: MessageProxy) -> None:
        """Make a dead letter of the message as it is now, with its error, and not as it came.

        Should this process die before the acknowledgement, there are two dead letters.
        """
        if not self._has_delivered(message):
            return
        try:
            self.broker.move_to_dead_letters(message)
        except (BrokerConnectionError, TypeError, ValueError) as error:  # it may not be JSON
            log.warning("dead_letter_without_metadata", cause=str(error))
            super().nack(message)  # the server makes a dead letter of it as it came
        else:
            super().ack(message)

    def _has_delivered(self, message: MessageProxy) -> bool:
        """Whether the message came on this very connection; else the server has it again.

        Tags count from 1 on each connection: Dramatiq 2.2 would acknowledge another message.
        """
        if message.consumer is not self:
            log.warning("stale_delivery_ignored", message_id=message.message_id)
        return message.consumer is self


class RabbitmqTaskBroker(TaskBroker, RabbitmqBroker):
    """Publishing waits for the server's confirmation: what is published is on its disk."""

    def __init__(self, url: str, *, middleware: list[Middleware]) -> None:
        parts = urlsplit(url)
        query = urlencode({**CONNECTION, **dict(parse_qsl(parts.query))})
        super().__init__(
            url=[parts._replace(query=query).geturl()], confirm_delivery=True, middleware=middleware
        )
        # All that it logs as an error it raises too, and those who catch that log it once.
        logging.getLogger("pika").setLevel(logging.CRITICAL)

    @property
    def consumer_class(self) -> type[RabbitmqConsumer]:
        return RabbitmqConsumer

    @property
    def connection(self) -> pika.BlockingConnection:
        """Dramatiq's connection of this thread.

        Dramatiq tries an operation again if its connection was closed, as happens when a thread
        sends nothing for a while; not if there is no new one to be had.
        """
        with connection_errors(AMQPError, OSError):
            return super().connection

    @connection.deleter
    def connection(self) -> None:
        RabbitmqBroker.connection.fdel(self)  # type: ignore[attr-defined]  # it is a property

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), **WORK_ARGUMENTS}

    def _declare_xq_queue(self, queue_name: str) -> Any:
        return self.channel.queue_declare(
            xq_name(queue_name), durable=True, arguments=DEAD_ARGUMENTS
        )

    def declarations(self, queue_name: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the arguments of the queues, by their names, that make up one of ours."""
        work = self._build_queue_arguments(queue_name)
        return {
            q_name(queue_name): work,
            dq_name(queue_name): work,
            xq_name(queue_name): DEAD_ARGUMENTS,
        }

    def close(self) -> None:
        """Close the connections of all threads; leave those whose server does not answer."""
        closing = threading.Thread(target=super().close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    @asynccontextmanager
    async def open_publisher(self) -> AsyncGenerator[Publisher]:
        publisher = RabbitmqPublisher(self)
        try:
            yield publisher
        finally:
            await publisher.close()

    def ping(self) -> None:
        with self._session():
            pass

    def is_redelivered(self, message: MessageProxy) -> bool:
        return bool(message.redelivered)

    def queue_state(self, queue_name: str) -> QueueState:
        """Count what lies in the queues.

        AMQP does not tell how many messages workers have taken: those that they work on, two for
        each thread, and a thousand for each thread of what is due later.
        """
        with self._session() as connection:
            names = (queue_name, dq_name(queue_name), xq_name(queue_name))
            waiting, delayed, dead = (_count(connection, name) for name in names)
        return QueueState(waiting, delayed, dead, oldest_seconds=None)

    def move_to_dead_letters(self, message: MessageProxy) -> None:
        """Raises BrokerConnectionError; TypeError or ValueError for what is not JSON."""
        dead = message.copy(options={DIED_AT: message.options.get(DIED_AT, current_millis())})
        for is_last_try in (False, True):
            try:
                self.declare_queue(dead.queue_name, ensure=True)
                send(self.channel, xq_name(dead.queue_name), dead.message_id, dead.encode())
            except (AMQPConnectionError, AMQPChannelError) as error:
                del self.connection  # the server had closed it, say
                self.queues_pending.add(q_name(dead.queue_name))
                if is_last_try:
                    raise ConnectionClosed(reason(error)) from error
            else:
                return

    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        """Return the newest ones, after a look at all: the server does not keep their order."""
        with self._take_dead(queue_name) as (_, taken):
            letters = (letter for letter, _ in taken)
            return heapq.nlargest(limit, letters, key=lambda letter: letter.died_at or _LONG_AGO)

    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """As TaskBroker has it; a message that is there twice is requeued once."""
        done = set[str]()
        with self._take_dead(queue_name) as (connection, taken):
            channel = connection.channel()
            channel.confirm_delivery()
            for letter, remove in taken:
                if letter.message.actor_name == UNREADABLE or not is_named(letter, ids):
                    continue
                if letter.id not in done:
                    message = without_failure_metadata(letter.message).copy(queue_name=queue_name)
                    send(channel, queue_name, message.message_id, message.encode())
                    done.add(letter.id)
                remove()
        return len(done)

    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        count = 0
        with self._take_dead(queue_name) as (_, taken):
            for letter, remove in taken:
                if is_named(letter, ids):
                    remove()
                    count += 1
        return count

    @contextmanager
    def _take_dead(self, queue_name: str) -> Iterator[tuple[pika.BlockingConnection, _Taken]]:
        """Take the dead letters; those that are not removed are back when the block ends.

        AMQP has no other way to look at messages.
        """
        with self._session() as connection:
            _lock(connection, queue_name)
            yield connection, _take_all(connection, queue_name)

    @contextmanager
    def _session(self) -> Iterator[pika.BlockingConnection]:
        """Open a connection for the block: the server closes one that answers no heartbeats."""
        try:
            with pika.BlockingConnection(self.parameters) as connection:
                yield connection
        except (AMQPError, OSError) as error:
            raise unavailable(error) from error


def _lock(connection: pika.BlockingConnection, queue_name: str) -> None:
    """Wait until no other command looks at the dead letters: it would not find what this one takes.

    The server releases an exclusive queue when its connection ends, in whatever way.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            connection.channel().queue_declare(f"{xq_name(queue_name)}.lock", exclusive=True)
        except ChannelClosedByBroker as error:
            if error.reply_code != _LOCKED or time.monotonic() > deadline:
                raise
            connection.sleep(_PAUSE)
        else:
            return


def _take_all(connection: pika.BlockingConnection, queue_name: str) -> _Taken:
    """Yield each dead letter, and what removes it.

    basic.get would be simpler, and takes a millisecond or more for each.
    """
    left = _count(connection, xq_name(queue_name))
    while left:
        channel = connection.channel()
        size = min(left, MAX_PREFETCH)
        channel.basic_qos(prefetch_count=size)
        deliveries = channel.consume(xq_name(queue_name), inactivity_timeout=ANSWER_SECONDS)
        for method, properties, body in islice(deliveries, size):
            if method is None:
                left = 0  # some were too old, and are gone
                break
            left -= 1
            yield (
                _read(queue_name, properties, body),
                partial(channel.basic_ack, method.delivery_tag),
            )
        channel.cancel()  # it gets more for those that are acknowledged


def _count(connection: pika.BlockingConnection, name: str) -> int:
    """Count the messages in the queue that no worker has taken; none if there is no such queue."""
    try:
        answer = connection.channel().queue_declare(name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code == _NOT_FOUND:
            return 0
        raise
    return int(answer.method.message_count)


def _read(queue_name: str, properties: pika.BasicProperties, body: bytes) -> DeadLetter:
    message = read_message(body, queue_name, sha256(body).hexdigest()[:32])
    died_at = message.options.get(DIED_AT)
    if isinstance(died_at, int):
        return DeadLetter(message.message_id, message, datetime.fromtimestamp(died_at / 1000, UTC))
    # The server has noted when it made a dead letter of the message.
    deaths = (properties.headers or {}).get("x-death")
    at = deaths[0]["time"].astimezone(UTC) if deaths else None
    return DeadLetter(message.message_id, message, at)
