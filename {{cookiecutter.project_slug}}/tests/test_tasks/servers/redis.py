import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from dev.server import ServerError
from dev.valkey import embedded_valkey
from src.core import redis_url
from src.tasks.engine.brokers.redis import RedisTaskBroker
from tests.proxy import Stream

NAME = "Valkey for tasks"
PASSWORD = "none: the server has no password"


@contextmanager
def serve() -> Iterator[str]:
    try:
        with embedded_valkey() as url:
            yield url
    except ServerError as error:
        pytest.skip(str(error))


def stored(data: Path) -> AbstractContextManager[str]:
    """Run a server that stores messages in a folder."""
    return embedded_valkey(data=data)


async def connect(url: str) -> Stream:
    return await asyncio.open_unix_connection(redis_url.parse(url).options["path"])


def via(_url: str, port: int) -> str:
    return f"redis://127.0.0.1:{port}"


def create(url: str, namespace: str) -> RedisTaskBroker:
    return RedisTaskBroker(redis_url.parse(url), namespace=namespace, middleware=[])


def put_raw(broker: RedisTaskBroker, queue: str, body: bytes) -> None:
    """Put raw bytes on the queue."""
    key = uuid4().hex
    broker.client.hset(f"{broker.namespace}:{queue}.msgs", key, body)
    broker.client.rpush(f"{broker.namespace}:{queue}", key)


def variables(url: str, name: str) -> dict[str, str]:
    """Return the settings of a worker. Its server is shared, so each test needs a namespace."""
    return {"DRAMATIQ_BROKER": "redis", "DRAMATIQ_REDIS_URL": url, "DRAMATIQ_NAMESPACE": name}
