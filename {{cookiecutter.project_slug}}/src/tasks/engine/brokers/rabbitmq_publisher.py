"""Publishes batches to RabbitMQ, and waits once per batch for the publisher confirms."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pika
from dramatiq import Message
from dramatiq.common import q_name
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import AMQPConnectionError, AMQPError
from pika.frame import Method
from pika.spec import Basic

from src.tasks.engine.brokers.base import BrokerUnavailableError, in_bursts

if TYPE_CHECKING:
    from src.tasks.engine.brokers.rabbitmq import RabbitmqTaskBroker

RESPONSE_SECONDS = 5.0
CLOSE_SECONDS = 2.0
BYTES_PER_SECOND = 1_000_000  # adds time for the size of a batch


class RabbitmqPublisher:
    """Publishes one batch at a time. Connects for the first batch, and again after a failure.

    pika calls back on the running event loop. Each step here waits for `_reply`, which fails as
    soon as the connection fails.
    """

    def __init__(self, broker: "RabbitmqTaskBroker") -> None:
        self._broker = broker
        self._lock = asyncio.Lock()
        self._connection: AsyncioConnection | None = None
        self._channel: Channel | None = None
        self._reply = asyncio.get_running_loop().create_future()
        self._declared = set[str]()
        self._published = 0  # on this channel; the confirms have the same numbers
        self._unconfirmed = set[int]()

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        if not messages:
            return
        bodies = []
        async for message in in_bursts(messages):
            self._broker.emit_before("enqueue", message, None)
            bodies.append(message.encode())
        limit = RESPONSE_SECONDS + sum(map(len, bodies)) / BYTES_PER_SECOND
        async with self._lock:
            is_published = False
            try:
                async with asyncio.timeout(limit):
                    await self._publish(messages, bodies)
                is_published = True
            except (AMQPError, OSError) as error:
                raise unavailable(error) from error
            finally:
                if not is_published:  # it failed or was cancelled
                    self._disconnect()
        for message in messages:
            self._broker.emit_after("enqueue", message, None)

    async def _publish(self, messages: Sequence[Message[Any]], bodies: Sequence[bytes]) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            channel = await self._open()
        for queue_name in {q_name(message.queue_name) for message in messages} - self._declared:
            for name, arguments in self._broker.declarations(queue_name).items():
                reply = self._expect_reply()
                channel.queue_declare(
                    name, durable=True, arguments=dict(arguments), callback=self._succeed
                )
                await reply
            self._declared.add(queue_name)
        reply = self._expect_reply()
        first, self._published = self._published + 1, self._published + len(messages)
        self._unconfirmed = set(range(first, self._published + 1))
        async for message, body in in_bursts([*zip(messages, bodies, strict=True)]):
            name = self._broker.server_name(message.queue_name)
            send(channel, name, message.message_id, body)
        await reply

    async def _open(self) -> Channel:
        self._disconnect()
        (parameters,) = self._broker.parameters
        reply = self._expect_reply()
        self._connection = AsyncioConnection(parameters, self._succeed, self._fail, self._fail)
        await reply
        reply = self._expect_reply()
        self._channel = channel = self._connection.channel(on_open_callback=self._succeed)
        channel.add_on_close_callback(self._fail)
        channel.add_on_return_callback(self._on_return)
        await reply
        reply = self._expect_reply()
        channel.confirm_delivery(self._on_confirm, self._succeed)
        await reply
        return channel

    async def close(self) -> None:
        if self._connection is not None and self._connection.is_open:
            reply = self._expect_reply()
            self._connection.close()
            with suppress(AMQPError, TimeoutError):  # AMQPError: the connection has closed
                await asyncio.wait_for(reply, CLOSE_SECONDS)
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        self._declared.clear()
        self._published = 0
        self._reply.cancel()
        if connection is not None and not connection.is_closed:
            # `close` would wait for a server that hangs. pika has no other public method.
            connection._terminate_stream(ConnectionAbortedError())  # noqa: SLF001

    def _expect_reply(self) -> asyncio.Future[Any]:
        self._reply = asyncio.get_running_loop().create_future()
        return self._reply

    def _succeed(self, value: object) -> None:
        if not self._reply.done():
            self._reply.set_result(value)

    def _fail(self, source: object, error: BaseException) -> None:
        is_current = source is self._connection or source is self._channel
        if is_current and not self._reply.done():
            self._reply.set_exception(AMQPConnectionError(error))

    def _on_return(self, channel: Channel, method: Basic.Return, *_: object) -> None:
        self._fail(channel, AMQPError(f"{method.reply_text}: {method.routing_key}"))

    def _on_confirm(self, frame: Method) -> None:
        tag = frame.method.delivery_tag
        if isinstance(frame.method, Basic.Nack):
            self._fail(self._channel, AMQPError("it rejected a message"))
        elif frame.method.multiple:
            self._unconfirmed = {each for each in self._unconfirmed if each > tag}
        else:
            self._unconfirmed.discard(tag)
        if not self._unconfirmed:
            self._succeed(None)


def send(channel: Any, queue_name: str, message_id: str, body: bytes) -> None:
    """Publish on either kind of channel. A blocking one waits for the publisher confirm."""
    properties = pika.BasicProperties(
        delivery_mode=pika.DeliveryMode.Persistent, message_id=message_id
    )
    channel.basic_publish("", queue_name, body, properties, mandatory=True)


def unavailable(error: BaseException) -> BrokerUnavailableError:
    return BrokerUnavailableError(f"RabbitMQ is unavailable: {reason(error)}")


def reason(error: BaseException) -> str:
    """Return the text of the system's or the server's error, which pika wraps."""
    inner = (getattr(error, "exception", None), *getattr(error, "exceptions", ()), *error.args)
    for wrapped in inner:
        if isinstance(wrapped, BaseException):
            return reason(wrapped)
    text = getattr(error, "reply_text", None) or str(error)
    return text or ("no response in time" if isinstance(error, TimeoutError) else repr(error))
