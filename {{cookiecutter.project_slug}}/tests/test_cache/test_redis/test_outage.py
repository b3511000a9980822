"""The whole service during an outage of Valkey under load."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from src.cache import Cache
from src.cache.backends.redis import RedisBackend
from src.cache.engine.circuit_breaker import CircuitBreakerBackend
from src.core import redis_url
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES
from tests.proxy import Proxy
from tests.test_cache.cached_notes import add_cached_notes, cached_path
from tests.test_cache.contract import until

CLIENTS = 20
WRITES = (b"SET", b"EVALSHA", b"UNLINK")


async def freeze(proxy: Proxy) -> None:
    proxy.freeze()


async def slow_down(proxy: Proxy) -> None:
    proxy.delay = lambda _: 0.2


async def slow_down_writes(proxy: Proxy) -> None:
    proxy.delay = lambda request: 0.2 * any(word in request for word in WRITES)


FAULTS = {
    "killed": Proxy.stop,
    "frozen": freeze,
    "slow": slow_down,
    "slow writes": slow_down_writes,
}


@pytest.fixture
async def cache(proxy: Proxy, namespace: str) -> AsyncGenerator[Cache]:
    url = redis_url.parse(f"redis://127.0.0.1:{proxy.port}")
    async with CircuitBreakerBackend(RedisBackend(url, namespace=namespace)) as backend:
        yield Cache(backend, ttl=60)


@pytest.fixture
async def client(
    fresh_app: FastAPI, committing_database: Database, cache: Cache
) -> AsyncGenerator[AsyncClient]:
    add_cached_notes(fresh_app)
    async with connect(fresh_app, committing_database, cache=cache) as client:
        yield client


@pytest.mark.slow
@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("fault", FAULTS)
async def test_requests_succeed_during_an_outage(
    client: AsyncClient, cache: Cache, proxy: Proxy, fault: str
) -> None:
    """Every request succeeds, no response is outdated, and the cache recovers."""
    note = (await client.post(NOTES, json={"text": "one"})).headers["location"]
    committed, reads, statuses, done = 1, 0, set[int](), asyncio.Event()

    async def read() -> None:
        nonlocal reads
        while not done.is_set():
            minimum = committed
            response = await client.get(cached_path(note))
            reads += 1
            statuses.add(response.status_code)
            assert response.json()["version"] >= minimum
            await asyncio.sleep(0.005)

    async def write() -> None:
        nonlocal committed
        while not done.is_set():
            response = await client.patch(note, json={"text": f"number {committed}"})
            statuses.add(response.status_code)
            committed = response.json()["version"]
            await asyncio.sleep(0.05)

    async def next_change() -> None:
        before = committed
        await until(lambda: committed > before)

    async def requests_bypass_the_server() -> bool:
        before, sent = reads, proxy.requests
        await until(lambda: reads > before + 20 * CLIENTS)
        return proxy.requests < sent + 5 * CLIENTS  # pings, and deletions of a slow cache

    async with asyncio.TaskGroup() as load:
        for work in (*[read] * CLIENTS, write):
            load.create_task(work())
        await next_change()
        await FAULTS[fault](proxy)
        await until(requests_bypass_the_server)
        assert not cache.backend.available
        await next_change()
        proxy.delay = lambda _: 0
        if fault in {"killed", "frozen"}:
            await proxy.stop()
            await proxy.start()
        await until(lambda: cache.backend.available)
        await next_change()
        done.set()

    assert statuses == {200}
    assert committed > 3
