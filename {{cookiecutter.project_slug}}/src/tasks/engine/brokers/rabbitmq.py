"""RabbitMQ as the broker.

Dramatiq has three queues for each of ours: `default`, `default.DQ` for what is due later, and
`default.XQ` for dead letters. Here they are quorum queues, and a message leaves one of them only
when the next has confirmed that it has it.
"""

# mypy: disallow-untyped-calls=False
# Dramatiq's own broker, which is extended here, has few annotations.

import asyncio
import heapq
import logging
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import aiormq
import pika
import structlog
from dramatiq import DecodeError, Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.brokers.rabbitmq import DEAD_MESSAGE_TTL, RabbitmqBroker, _RabbitmqConsumer
from dramatiq.common import current_millis, dq_name, q_name, xq_name
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, ConnectionFailed
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPChannelError,
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
)

from src.tasks.engine.brokers.base import (
    DIED_AT,
    ERROR,
    UNREADABLE,
    BrokerUnavailableError,
    DeadLetter,
    Publisher,
    QueueState,
    TaskBroker,
    without_failure_metadata,
)

log = structlog.get_logger(__name__)

# Seconds; the URL may have others. A server that hangs is found out after a heartbeat and five.
CONNECTION = {
    "heartbeat": "15",
    "blocked_connection_timeout": "5",
    "socket_timeout": "3",
    "stack_timeout": "5",
}
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 2.0
SLOWEST = 1_000_000  # bytes a second that a batch may take, beyond ANSWER_SECONDS

# Far more than rolling restarts and looks at dead letters use up; RabbitMQ 4 would give up at 20.
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

MAX_PREFETCH = 1000  # each channel takes so many, which bounds what is in memory here
_NOT_FOUND = 404
_LOCKED = 405
_PAUSE = 0.02
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class RabbitmqConsumer(_RabbitmqConsumer):
    broker: "RabbitmqTaskBroker"

    def __init__(self, *arguments: Any) -> None:
        try:
            super().__init__(*arguments)
        except OSError as error:  # its name is not known, say
            raise ConnectionFailed(_reason(error)) from error

    def __next__(self) -> MessageProxy | None:
        message = super().__next__()
        if message is not None:
            message.consumer = self
        return message  # type: ignore[no-any-return]  # no types there

    def ack(self, message: MessageProxy) -> None:
        if self._holds(message):
            super().ack(message)

    def nack(self, message: MessageProxy) -> None:
        """Bury the message as it is now, which tells of its end, and not as it came.

        Should this process die before the acknowledgement, there are two dead letters.
        """
        if not self._holds(message):
            return
        try:
            self.broker.bury(message)
        except (BrokerConnectionError, TypeError, ValueError) as error:  # it may not be JSON
            log.warning("dead_letter_without_traces", cause=str(error))
            super().nack(message)  # the server buries it as it came
        else:
            super().ack(message)

    def _holds(self, message: MessageProxy) -> bool:
        """Whether the message came on this very connection; else the server has it again.

        Tags count from 1 on each connection: Dramatiq would acknowledge somebody else's message.
        """
        if message.consumer is self:
            return True
        log.warning("message_will_come_again", message_id=message.message_id)
        return False


class RabbitmqTaskBroker(TaskBroker, RabbitmqBroker):
    """Publishing waits for the server's confirmation, so that what is sent is on disk."""

    def __init__(self, url: str, *, middleware: list[Middleware]) -> None:
        self._url = _with_defaults(url)
        super().__init__(url=[self._url], confirm_delivery=True, middleware=middleware)
        # All that they tell of as an error is raised too, and told once by those who catch it.
        for name in ("aiormq", "pika"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    @property
    def consumer_class(self) -> type[RabbitmqConsumer]:
        return RabbitmqConsumer

    @property
    def connection(self) -> pika.BlockingConnection:
        """Dramatiq's connection of this thread. Raises ConnectionFailed, which it does not retry.

        It does retry what fails on a connection: that may have been closed since, as nobody
        answers heartbeats on it between two messages.
        """
        try:
            return super().connection
        except (AMQPError, OSError) as error:
            raise ConnectionFailed(_reason(error)) from error

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
        """Close the connections of all threads; give up those whose server does not answer."""
        closing = threading.Thread(target=super().close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    @asynccontextmanager
    async def open_publisher(self) -> AsyncGenerator[Publisher]:
        publisher = _Publisher(self, self._url)
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

        What workers have taken is not in them: AMQP does not tell of it. That is what they work on,
        two messages for each thread, and a thousand for each thread of what is due later.
        """
        with self._session() as connection:
            names = (queue_name, dq_name(queue_name), xq_name(queue_name))
            waiting, delayed, dead = (_count(connection, name) for name in names)
        return QueueState(waiting, delayed, dead, oldest_seconds=None)

    def bury(self, message: MessageProxy) -> None:
        """Add the message to the dead letters. Raises BrokerConnectionError."""
        died_at = message.options.get(DIED_AT, current_millis())
        dead = message.copy(options={DIED_AT: died_at})
        try:
            self._publish_dead(dead)
        except (AMQPConnectionError, AMQPChannelError):
            del self.connection  # it had been closed since it was last used, say
            self.queues_pending.add(q_name(dead.queue_name))
            try:
                self._publish_dead(dead)
            except (AMQPConnectionError, AMQPChannelError) as error:
                del self.connection
                raise ConnectionClosed(_reason(error)) from error

    def _publish_dead(self, message: Message[Any]) -> None:
        self.declare_queue(message.queue_name, ensure=True)
        _publish(self.channel, xq_name(message.queue_name), message)

    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        """Return the newest ones, after a look at all: the server does not keep their order."""
        with self._take_dead(queue_name) as taken:
            letters = (each.letter for each in taken)
            return heapq.nlargest(limit, letters, key=lambda letter: letter.died_at or _LONG_AGO)

    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        """As TaskBroker has it. What is no message stays dead; what is there twice lives once."""
        wanted = ids if ids is None else frozenset(ids)
        done = set[str]()
        with self._take_dead(queue_name) as taken:
            channel = taken.connection.channel()
            channel.confirm_delivery()
            for each in taken:
                letter = each.letter
                if letter.message.actor_name == UNREADABLE:
                    continue
                if wanted is not None and letter.id not in wanted:
                    continue
                if letter.id not in done:
                    message = without_failure_metadata(letter.message).copy(queue_name=queue_name)
                    _publish(channel, queue_name, message)
                    done.add(letter.id)
                each.remove()
        return len(done)

    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        with self._take_dead(queue_name) as taken:
            if ids is None:
                return taken.purge()
            wanted, count = frozenset(ids), 0
            for each in taken:
                if each.letter.id in wanted:
                    each.remove()
                    count += 1
            return count

    @contextmanager
    def _take_dead(self, queue_name: str) -> Iterator["_TakenLetters"]:
        with self._session() as connection:
            taken = _TakenLetters(connection, queue_name)
            taken.lock()
            yield taken
            # The server gives back what is not removed as the connection ends, however it ends.

    @contextmanager
    def _session(self) -> Iterator[pika.BlockingConnection]:
        """Open a connection for the block: one that is kept is closed if nobody waits on it."""
        try:
            with pika.BlockingConnection(self.parameters) as connection:
                yield connection
        except (AMQPError, OSError) as error:
            raise _unavailable(error) from error


@dataclass(frozen=True)
class _Taken:
    letter: DeadLetter
    channel: BlockingChannel
    tag: int

    def remove(self) -> None:
        self.channel.basic_ack(self.tag)


class _TakenLetters:
    """The dead letters of a queue, taken one by one, and not acknowledged.

    AMQP has no way to look at messages but to take them and to give them back. basic.get would be
    simpler, and takes a millisecond or more for each.
    """

    def __init__(self, connection: pika.BlockingConnection, queue_name: str) -> None:
        self.connection = connection
        self._queue_name = queue_name
        self._name = xq_name(queue_name)

    def lock(self) -> None:
        """Keep off others who would look: what one has taken, the next does not find.

        The server lets go of an exclusive queue when its connection ends, in whatever way.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                self.connection.channel().queue_declare(f"{self._name}.lock", exclusive=True)
            except ChannelClosedByBroker as error:
                if error.reply_code != _LOCKED:
                    raise
                if time.monotonic() > deadline:
                    raise BrokerUnavailableError(
                        f"Somebody else is busy with the dead letters of {self._queue_name}."
                    ) from error
                self.connection.sleep(_PAUSE)
            else:
                return

    def __iter__(self) -> Iterator[_Taken]:
        left = _count(self.connection, self._name)
        while left:
            channel = self.connection.channel()
            size = min(left, MAX_PREFETCH)
            channel.basic_qos(prefetch_count=size)
            deliveries = channel.consume(self._name, inactivity_timeout=ANSWER_SECONDS)
            for method, properties, body in islice(deliveries, size):
                if method is None:
                    left = 0  # some were too old, and are gone
                    break
                left -= 1
                letter = _read(self._queue_name, properties, body)
                yield _Taken(letter, channel, method.delivery_tag)
            channel.cancel()  # it gets more for those that are acknowledged

    def purge(self) -> int:
        if not _count(self.connection, self._name):
            return 0
        answer = self.connection.channel().queue_purge(self._name)
        return int(answer.method.message_count)


class _Socket(aiormq.TransportFactory):
    """Opens the socket, and can drop it: aiormq waits until all is sent, be it for ever."""

    def __init__(self, parameters: pika.ConnectionParameters) -> None:
        self._parameters = parameters
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, *_: Any, **__: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        server, tls = self._parameters, self._parameters.ssl_options
        options = {"ssl": tls.context, "server_hostname": tls.server_hostname} if tls else {}
        reader, self._writer = await asyncio.open_connection(server.host, server.port, **options)
        return reader, self._writer

    def drop(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


class _Connection(aiormq.Connection):
    # Frames that may wait to be written. With the ten of aiormq a batch would go to and fro between
    # its messages and the socket, which takes half as long again.
    FRAME_BUFFER_SIZE = 1000

    def __init__(self, url: str, parameters: pika.ConnectionParameters) -> None:
        self._socket = _Socket(parameters)
        super().__init__(url, transport_factory=self._socket)

    async def end(self) -> None:
        """Close it, by force if the server does not answer."""
        closing = asyncio.create_task(self.close(aiormq.ConnectionClosed(0, "closed")))
        try:
            await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        finally:
            self._socket.drop()
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)


class _Publisher:
    """Connects when it is first used, and again at the next use after a failure."""

    def __init__(self, broker: RabbitmqTaskBroker, url: str) -> None:
        self._broker = broker
        self._url = url
        self._opening = asyncio.Lock()
        self._connection: _Connection | None = None
        self._channel: aiormq.Channel | None = None
        self._declared = set[str]()

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        if not messages:
            return
        for message in messages:
            self._broker.emit_before("enqueue", message, None)
        bodies = [message.encode() for message in messages]
        limit = ANSWER_SECONDS + sum(map(len, bodies)) / SLOWEST
        try:
            async with asyncio.timeout(limit):
                channel = await self._open({q_name(message.queue_name) for message in messages})
                await _send_all(channel, messages, bodies)
        # aiormq raises RuntimeError of what is closed, and CancelledError when it closes it.
        except (aiormq.AMQPError, OSError, RuntimeError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                raise
            await self.close()
            raise _unavailable(error) from error
        for message in messages:
            self._broker.emit_after("enqueue", message, None)

    async def close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await connection.end()

    async def _open(self, queue_names: set[str]) -> aiormq.Channel:
        async with self._opening:
            # It is back in its place only when all has gone well: not if this is cancelled, say.
            channel, self._channel = self._channel, None
            if channel is None or channel.is_closed or not channel.connection.is_opened:
                channel = await self._connect()
            for queue_name in queue_names - self._declared:
                for name, arguments in self._broker.declarations(queue_name).items():
                    await channel.queue_declare(name, durable=True, arguments=dict(arguments))
                self._declared.add(queue_name)
            self._channel = channel
            return channel

    async def _connect(self) -> aiormq.Channel:
        await self.close()
        self._declared.clear()
        (parameters,) = self._broker.parameters
        self._connection = connection = _Connection(self._url, parameters)
        await connection.connect()
        channel = await connection.channel(frame_buffer_size=connection.FRAME_BUFFER_SIZE)
        return cast(aiormq.Channel, channel)


async def _send_all(
    channel: aiormq.Channel, messages: Sequence[Message[Any]], bodies: Sequence[bytes]
) -> None:
    """Send them in their order, without waiting, and then wait for all to be confirmed."""
    results = await asyncio.gather(
        *(
            channel.basic_publish(
                body,
                routing_key=message.queue_name,
                properties=aiormq.spec.Basic.Properties(
                    delivery_mode=pika.DeliveryMode.Persistent.value, message_id=message.message_id
                ),
                mandatory=True,
                wait=False,
            )
            for message, body in zip(messages, bodies, strict=True)
        ),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _with_defaults(url: str) -> str:
    parts = urlsplit(url)
    query = {**CONNECTION, **dict(parse_qsl(parts.query))}
    return parts._replace(query=urlencode(query)).geturl()


def _publish(channel: BlockingChannel, queue_name: str, message: Message[Any]) -> None:
    """Put the message on the queue; once this returns the server has it for good."""
    properties = pika.BasicProperties(
        delivery_mode=pika.DeliveryMode.Persistent, message_id=message.message_id
    )
    channel.basic_publish("", queue_name, message.encode(), properties, mandatory=True)


def _count(connection: pika.BlockingConnection, name: str) -> int:
    """Count the messages in the queue that nobody has taken; none if there is no such queue."""
    try:
        answer = connection.channel().queue_declare(name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code == _NOT_FOUND:
            return 0
        raise
    return int(answer.method.message_count)


def _read(queue_name: str, properties: pika.BasicProperties, body: bytes) -> DeadLetter:
    try:
        message = Message.decode(body)
    except DecodeError:
        options = {ERROR: f"It is no message: {body[:200]!r}"}
        digest = sha256(body).hexdigest()[:32]
        message = Message(queue_name, UNREADABLE, (), {}, options, message_id=digest)
    return DeadLetter(message.message_id, message, _died_at(message, properties))


def _died_at(message: Message[Any], properties: pika.BasicProperties) -> datetime | None:
    noted = message.options.get(DIED_AT)
    if isinstance(noted, int):
        return datetime.fromtimestamp(noted / 1000, UTC)
    deaths = (properties.headers or {}).get("x-death")  # the server noted those that it buried
    return deaths[0]["time"].astimezone(UTC) if deaths else None


def _unavailable(error: BaseException) -> BrokerUnavailableError:
    return BrokerUnavailableError(f"RabbitMQ cannot be used: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """Tell in words what is wrong; pika wraps what the system says."""
    cause = getattr(error.args[0], "exception", error) if error.args else error
    text = getattr(cause, "reply_text", None) or str(cause)
    return text or ("no answer in time" if isinstance(cause, TimeoutError) else repr(cause))
