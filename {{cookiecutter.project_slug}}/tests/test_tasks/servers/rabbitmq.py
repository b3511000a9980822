import asyncio
import atexit
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dramatiq.common import q_name

from dev.rabbitmq import embedded_rabbitmq
from dev.server import ServerError
from src.tasks.engine.brokers import rabbitmq, rabbitmq_publisher
from src.tasks.engine.brokers.rabbitmq import RabbitmqTaskBroker
from tests.proxy import Stream
from tests.test_tasks.workers import LIMIT

NAME = "RabbitMQ"
PASSWORD = "guest"


@contextmanager
def serve() -> Iterator[str]:
    try:
        url = os.environ.get("TEST_RABBITMQ_URL") or _start()
    except ServerError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        # A busy server responds slowly. A server that is not running refuses connections immediately.
        for module in (rabbitmq, rabbitmq_publisher):
            patch.setattr(module, "RESPONSE_SECONDS", LIMIT)
        for name in ("socket_timeout", "stack_timeout"):
            patch.setitem(rabbitmq.CONNECTION, name, str(LIMIT))
        yield url


@cache
def _start() -> str:
    """Start one server for the whole process, because a start takes seconds."""
    stack = ExitStack()
    url = stack.enter_context(embedded_rabbitmq())
    atexit.register(stack.close)
    return url


def stored(data: Path) -> AbstractContextManager[str]:
    """Run a server that stores messages in a folder."""
    return embedded_rabbitmq(data)


async def connect(url: str) -> Stream:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def via(url: str, port: int) -> str:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()


def create(url: str, namespace: str) -> RabbitmqTaskBroker:
    return RabbitmqTaskBroker(url, namespace=namespace, middleware=[])


def put_raw(broker: RabbitmqTaskBroker, queue: str, body: bytes) -> None:
    """Put raw bytes on the queue."""
    broker.declare_queue(q_name(queue), ensure=True)
    broker.channel.basic_publish("", broker.server_name(queue), body)


def variables(url: str, name: str) -> dict[str, str]:
    """Return the settings of a worker. Its server is shared, so each test needs a namespace."""
    return {"DRAMATIQ_BROKER": "rabbitmq", "RABBITMQ_URL": url, "DRAMATIQ_NAMESPACE": name}
