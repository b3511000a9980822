import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from dev.rabbitmq import RabbitMQError, embedded_rabbitmq
from tests.proxy import Stream


@contextmanager
def serve() -> Iterator[str]:
    if named := os.environ.get("TEST_RABBITMQ_URL"):
        yield named
        return
    try:
        with embedded_rabbitmq() as url:
            yield url
    except RabbitMQError as error:
        pytest.skip(str(error))


async def connect(url: str) -> Stream:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def via(url: str, port: int) -> str:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()


def variables(url: str, _name: str) -> dict[str, str]:
    """Return the settings of a task queue. It shares the server, so its queues need own names."""
    return {"DRAMATIQ_BROKER": "rabbitmq", "RABBITMQ_URL": url}
