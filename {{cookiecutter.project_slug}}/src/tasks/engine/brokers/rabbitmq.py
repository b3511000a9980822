"""The RabbitMQ broker.

Dramatiq declares three queues for each queue of tasks: `default`, `default.DQ` for delayed
messages, and `default.XQ` for dead letters. Here they are quorum queues, and their names on the
server begin with the namespace. A message is removed from one queue only after RabbitMQ has
confirmed it on the next.
"""

# mypy: disallow-untyped-calls=False
# The base class, Dramatiq's broker, has few annotations.

import heapq
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pika
import structlog
from dramatiq import Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.brokers.rabbitmq import (
    DEAD_MESSAGE_TTL,
    RabbitmqBroker,
    _RabbitmqConsumer,
    _RabbitmqMessage,
)
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
    is_selected,
    read_entry,
    read_message,
    without_failure_metadata,
)
from src.tasks.engine.brokers.rabbitmq_publisher import (
    CLOSE_SECONDS,
    RESPONSE_SECONDS,
    RabbitmqPublisher,
    reason,
    send,
    unavailable,
)
from src.tasks.engine.dramatiq_patches import connection_errors

log = structlog.get_logger(__name__)

# Seconds. The URL can override them. A server that hangs is noticed after `heartbeat` + 5.
CONNECTION = {
    "heartbeat": "15",
    "blocked_connection_timeout": "5",
    "socket_timeout": "3",
    "stack_timeout": "5",
}
# By default, RabbitMQ 4 drops a message after 20 deliveries. A restart of a worker, or a command
# that reads dead letters, causes a delivery.
DELIVERY_LIMIT = 1_000_000
# Milliseconds until a worker must acknowledge a message, including the time until it is due.
# RabbitMQ's default is 30 minutes. Versions before 3.12 ignore this argument.
CONSUMER_TIMEOUT = 7 * 86_400_000
WORK_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-consumer-timeout": CONSUMER_TIMEOUT,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",  # required by the strategy; there is no length limit
}
DEAD_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-message-ttl": DEAD_MESSAGE_TTL,
}

NO_NAMESPACE = "none"
MAX_PREFETCH = 1000  # dead letters in memory at the same time
_NOT_FOUND, _LOCKED = 404, 405  # AMQP reply codes
_POLL_SECONDS = 0.02
_NO_TIME = datetime.min.replace(tzinfo=UTC)

# Dead letters, each with the function that removes it.
_Consumed = Iterator[tuple[DeadLetter, Callable[[], None]]]


class RabbitmqConsumer(_RabbitmqConsumer):
    broker: "RabbitmqTaskBroker"

    def __init__(self, broker: "RabbitmqTaskBroker", queue_name: str, *arguments: Any) -> None:
        with connection_errors(OSError):  # for example an unknown host name
            super().__init__(broker, broker.server_name(queue_name), *arguments)
        self.queue_name = queue_name

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None after a time-out. Others are set aside."""
        try:
            method, _, body = next(self.iterator)
        except (AssertionError, AMQPConnectionError, AMQPChannelError) as error:
            if getattr(error, "reply_code", None) == _NOT_FOUND:
                self.broker.queues_pending.add(q_name(self.queue_name))
            raise ConnectionClosed(error) from None
        if method is None:
            return None
        message = read_entry(body, self.queue_name)
        if message is None:
            self._nack(method.delivery_tag)  # RabbitMQ makes it a dead letter as it is
            return None
        self.known_tags.add(method.delivery_tag)
        delivered = _RabbitmqMessage(method.redelivered, method.delivery_tag, message)
        delivered.consumer = self  # type: ignore[attr-defined]  # read by _has_delivered
        return delivered

    def ack(self, message: MessageProxy) -> None:
        if self._has_delivered(message):
            super().ack(message)

    def nack(self, message: MessageProxy) -> None:
        """Write the dead letter with the current options, which include the error.

        RabbitMQ alone would use the message as it was delivered. If this process dies before the
        acknowledgement, there can be two dead letters.
        """
        if not self._has_delivered(message):
            return
        try:
            self.broker.move_to_dead_letters(message)
        except (BrokerConnectionError, TypeError, ValueError) as error:  # not JSON
            log.warning("dead_letter_without_metadata", cause=str(error))
            super().nack(message)  # RabbitMQ dead-letters the message as it was delivered
        else:
            super().ack(message)

    def _has_delivered(self, message: MessageProxy) -> bool:
        """Return whether this connection delivered the message. If not, RabbitMQ has requeued it.

        Delivery tags start at 1 on each connection, so Dramatiq 2.2 would acknowledge another
        message.
        """
        if message.consumer is not self:
            log.warning("stale_delivery_ignored", message_id=message.message_id)
        return message.consumer is self


class RabbitmqTaskBroker(TaskBroker, RabbitmqBroker):
    """Publishing waits for the publisher confirm: a published message is on the server's disk."""

    def __init__(self, url: str, *, namespace: str, middleware: list[Middleware]) -> None:
        self._prefix = "" if namespace == NO_NAMESPACE else f"{namespace}."
        parts = urlsplit(url)
        query = urlencode({**CONNECTION, **dict(parse_qsl(parts.query))})
        super().__init__(
            url=[parts._replace(query=query).geturl()], confirm_delivery=True, middleware=middleware
        )
        # pika raises every error that it logs, and the code that catches the error logs it once.
        logging.getLogger("pika").setLevel(logging.CRITICAL)

    @property
    def consumer_class(self) -> type[RabbitmqConsumer]:
        return RabbitmqConsumer

    @property
    def connection(self) -> pika.BlockingConnection:
        """Dramatiq's connection for this thread. Raises ConnectionFailed.

        Dramatiq reconnects if the server has closed the connection, for example because the thread
        was idle.
        """
        with connection_errors(AMQPError, OSError):
            return super().connection

    @connection.deleter
    def connection(self) -> None:
        RabbitmqBroker.connection.fdel(self)  # type: ignore[attr-defined]  # it is a property

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), **WORK_ARGUMENTS}

    def _declare_queue(self, queue_name: str) -> Any:
        return super()._declare_queue(self.server_name(queue_name))

    def _declare_dq_queue(self, queue_name: str) -> Any:
        return super()._declare_dq_queue(self.server_name(queue_name))

    def _declare_xq_queue(self, queue_name: str) -> Any:
        name = xq_name(self.server_name(queue_name))
        return self.channel.queue_declare(name, durable=True, arguments=DEAD_ARGUMENTS)

    def server_name(self, queue_name: str) -> str:
        """Return the name on the server. Other services and environments have other names."""
        return self._prefix + queue_name

    def declarations(self, queue_name: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the arguments of the three queues, by name, that Dramatiq uses for a queue."""
        name = self.server_name(queue_name)
        work = self._build_queue_arguments(name)
        return {q_name(name): work, dq_name(name): work, xq_name(name): DEAD_ARGUMENTS}

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        if delay is not None:
            name, eta = dq_name(message.queue_name), current_millis() + delay
            message = message.copy(queue_name=name, options={"eta": eta})
        self.emit_before("enqueue", message, delay)
        self._send(message.queue_name, message)
        self.emit_after("enqueue", message, delay)
        return message

    def close(self) -> None:
        """Close the connections of all threads. Do not wait for a server that hangs."""
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

    def has_workers(self, queue_name: str) -> bool:
        with self._session() as connection:
            return _count(connection, self.server_name(queue_name), "consumer_count") > 0

    def queue_state(self, queue_name: str) -> QueueState:
        """Count the messages that no worker has fetched.

        AMQP does not report how many messages workers have fetched: up to two for each thread, and
        up to a thousand delayed ones for each thread.
        """
        with self._session() as connection:
            names = self.declarations(queue_name)
            waiting, delayed, dead = (_count(connection, name) for name in names)
        return QueueState(waiting, delayed, dead, oldest_seconds=None)

    def move_to_dead_letters(self, message: MessageProxy) -> None:
        """Raises BrokerConnectionError, or TypeError or ValueError if the message is not JSON."""
        dead = message.copy(options={DIED_AT: message.options.get(DIED_AT, current_millis())})
        self._send(xq_name(dead.queue_name), dead)

    def _send(self, queue_name: str, message: Message[Any]) -> None:
        """Publish on the connection of this thread. Raises BrokerConnectionError."""
        for is_last_attempt in (False, True):
            try:
                self.declare_queue(q_name(message.queue_name), ensure=True)
                name = self.server_name(queue_name)
                send(self.channel, name, message.message_id, message.encode())
            except (AMQPConnectionError, AMQPChannelError) as error:
                del self.connection  # for example because the server closed it
                self.queues_pending.add(q_name(message.queue_name))
                if is_last_attempt:
                    raise ConnectionClosed(reason(error)) from error
            else:
                return

    def add_dead_letter(self, queue_name: str, letter_id: str, body: bytes) -> None:
        with self._session() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for name, arguments in self.declarations(queue_name).items():
                channel.queue_declare(name, durable=True, arguments=dict(arguments))
            send(channel, xq_name(self.server_name(queue_name)), letter_id, body)

    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        """Read all dead letters, because RabbitMQ does not keep their order; return the newest."""
        with self._consume_dead(queue_name) as (_, consumed):
            letters = (letter for letter, _ in consumed)
            return heapq.nlargest(limit, letters, key=lambda letter: letter.died_at or _NO_TIME)

    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """See TaskBroker. A message with two dead letters is requeued once."""
        done = set[str]()
        with self._consume_dead(queue_name) as (connection, consumed):
            channel = connection.channel()
            channel.confirm_delivery()
            for letter, remove in consumed:
                if letter.message.actor_name == UNREADABLE or not is_selected(letter, ids):
                    continue
                if letter.id not in done:
                    message = without_failure_metadata(letter.message).copy(queue_name=queue_name)
                    name = self.server_name(queue_name)
                    send(channel, name, message.message_id, message.encode())
                    done.add(letter.id)
                remove()
        return len(done)

    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        count = 0
        with self._consume_dead(queue_name) as (_, consumed):
            for letter, remove in consumed:
                if is_selected(letter, ids):
                    remove()
                    count += 1
        return count

    @contextmanager
    def _consume_dead(self, queue_name: str) -> Iterator[tuple[pika.BlockingConnection, _Consumed]]:
        """Consume the dead letters. Those that are not removed are requeued at the end.

        AMQP has no other way to read messages.
        """
        with self._session() as connection:
            name = xq_name(self.server_name(queue_name))
            _lock(connection, name)
            yield connection, _consume_all(connection, name, queue_name)

    @contextmanager
    def _session(self) -> Iterator[pika.BlockingConnection]:
        """Open a new connection: RabbitMQ closes one that is idle and sends no heartbeats."""
        try:
            with pika.BlockingConnection(self.parameters) as connection:
                yield connection
        except (AMQPError, OSError) as error:
            raise unavailable(error) from error


def _lock(connection: pika.BlockingConnection, name: str) -> None:
    """Wait until no other command consumes the dead letters: this one would not see them.

    The lock is an exclusive queue. RabbitMQ deletes it when the connection ends.
    """
    deadline = time.monotonic() + RESPONSE_SECONDS
    while True:
        try:
            connection.channel().queue_declare(f"{name}.lock", exclusive=True)
        except ChannelClosedByBroker as error:
            if error.reply_code != _LOCKED or time.monotonic() > deadline:
                raise
            connection.sleep(_POLL_SECONDS)
        else:
            return


def _consume_all(connection: pika.BlockingConnection, name: str, queue_name: str) -> _Consumed:
    """Yield each dead letter with the function that removes it.

    basic.get would be simpler, but takes a millisecond or more for each message.
    """
    left = _count(connection, name)
    while left:
        channel = connection.channel()
        size = min(left, MAX_PREFETCH)
        channel.basic_qos(prefetch_count=size)
        deliveries = channel.consume(name, inactivity_timeout=RESPONSE_SECONDS)
        for method, properties, body in islice(deliveries, size):
            if method is None:
                left = 0  # some have expired since they were counted
                break
            left -= 1
            yield (
                _read(queue_name, properties, body),
                partial(channel.basic_ack, method.delivery_tag),
            )
        channel.cancel()  # each acknowledged message would be replaced by another


def _count(connection: pika.BlockingConnection, name: str, what: str = "message_count") -> int:
    """Count the messages that no worker has fetched. Return 0 if the queue does not exist."""
    try:
        declared = connection.channel().queue_declare(name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code == _NOT_FOUND:
            return 0
        raise
    return int(getattr(declared.method, what))


def _read(queue_name: str, properties: pika.BasicProperties, body: bytes) -> DeadLetter:
    message = read_message(body, queue_name)
    died_at = message.options.get(DIED_AT)
    if isinstance(died_at, int):
        return DeadLetter(message.message_id, message, datetime.fromtimestamp(died_at / 1000, UTC))
    # RabbitMQ dead-lettered the message and recorded the time.
    deaths = (properties.headers or {}).get("x-death")
    at = deaths[0]["time"].astimezone(UTC) if deaths else None
    return DeadLetter(message.message_id, message, at)
