"""The backend behind Sentinels: it finds the server, and the next one after a failover."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from dev.valkey import embedded_valkey
from src.cache.backends.base import CacheUnavailableError
from src.cache.backends.redis import RedisBackend
from src.core import redis_url
from src.core.redis_url import RedisURL
from tests.test_cache.contract import PATIENCE_SECONDS
from tests.test_cache.test_redis.servers import free_port

pytestmark = pytest.mark.usefixtures("url")  # it skips without the wheel

Deployment = tuple[RedisURL, Redis, int, int]


def client(url: str) -> Redis:
    return Redis(unix_socket_path=redis_url.parse(url).options["path"])


@pytest.fixture
async def deployment() -> AsyncGenerator[Deployment]:
    """The URL of a Sentinel, a client of it, and the ports of the server it watches and another."""
    first, second, port = free_port(), free_port(), free_port()
    with (
        embedded_valkey(["--port", str(first)]),
        embedded_valkey(["--port", str(second)]),
        embedded_valkey(["--sentinel", "--port", str(port)]) as socket,
    ):
        async with client(socket) as sentinel:
            await sentinel.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", first, 1)
            url = redis_url.parse(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/main/0")
            yield url, sentinel, first, second


async def test_server_is_the_one_that_the_sentinels_name(deployment: Deployment) -> None:
    """And after a failover the next one, though a connection may try the former once more."""
    url, sentinel, first, second = deployment
    async with RedisBackend(url, namespace="test") as backend:
        await backend.set("key", "first")
        assert await backend.get("key") == "first"

        await sentinel.execute_command("SENTINEL", "REMOVE", "main")
        await sentinel.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", second, 1)
        async with Redis(port=second) as other:
            await other.set("test:key", "second")
        # It goes away, as before a failover. (`from_url`, for that does not try it again.)
        async with Redis.from_url(f"redis://127.0.0.1:{first}") as former:
            await former.shutdown(nosave=True)

        with suppress(CacheUnavailableError):
            await backend.get("key")
        assert await backend.get("key") == "second"


async def test_service_that_is_not_known_is_unavailable(deployment: Deployment) -> None:
    url, sentinel, _, _ = deployment
    await sentinel.execute_command("SENTINEL", "REMOVE", "main")
    async with RedisBackend(url, namespace="test") as backend:
        with pytest.raises(CacheUnavailableError, match="main"):
            await asyncio.wait_for(backend.ping(), PATIENCE_SECONDS)
