"""A Valkey server for the tests; each test has a separate namespace."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from ssl import SSLContext
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from dev.server import ServerError
from dev.valkey import embedded_valkey
from src.cache.backends import redis as redis_backend
from src.cache.backends.redis import RedisBackend, close_client, create_client
from src.core import redis_url
from src.core.redis_url import RedisURL
from tests.proxy import Proxy


@pytest.fixture(scope="session")
def url() -> Iterator[RedisURL]:
    try:
        with embedded_valkey() as url:
            yield redis_url.parse(url)
    except ServerError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _long_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine may respond late; a stopped server refuses connections immediately."""
    _set_socket_timeouts(monkeypatch, 60.0)
    monkeypatch.setattr(redis_backend, "WAIT_SECONDS", 60.0)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch, _long_timeouts: None) -> None:
    """Backends that are created after this fixture have the default timeouts."""
    _set_socket_timeouts(monkeypatch, redis_backend.SOCKET_SECONDS)


def _set_socket_timeouts(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for name in ("socket_connect_timeout", "socket_timeout"):
        monkeypatch.setitem(redis_backend.COMMON_OPTIONS, name, seconds)


@pytest.fixture
def namespace() -> str:
    return uuid4().hex


@pytest.fixture
async def backend(url: RedisURL, namespace: str) -> AsyncGenerator[RedisBackend]:
    async with RedisBackend(url, namespace=namespace) as backend:
        yield backend


@asynccontextmanager
async def open_proxy(url: RedisURL, tls: SSLContext | None = None) -> AsyncGenerator[Proxy]:
    proxy = Proxy(partial(asyncio.open_unix_connection, url.options["path"]), tls=tls)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


@pytest.fixture
async def proxy(url: RedisURL) -> AsyncGenerator[Proxy]:
    """A connection to the server that can fail."""
    async with open_proxy(url) as proxy:
        yield proxy


@pytest.fixture
async def other_namespace(url: RedisURL, namespace: str) -> AsyncGenerator[RedisBackend]:
    async with RedisBackend(url, namespace=f"{namespace}2") as backend:
        yield backend


@pytest.fixture
async def server(url: RedisURL) -> AsyncGenerator[Redis]:
    """A separate client, to check what the backend stores."""
    client = create_client(url)
    assert isinstance(client, Redis)
    yield client
    await close_client(client)
