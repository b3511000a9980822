"""The whole service while Valkey fails under load, and recovers."""

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
from tests.proxy import Relay
from tests.test_cache.cached_notes import add_cached_notes, cached
from tests.test_cache.contract import until

CLIENTS = 20


@pytest.fixture
async def cache(proxy: Relay, namespace: str) -> AsyncGenerator[Cache]:
    url = redis_url.parse(f"redis://127.0.0.1:{proxy.port}")
    async with CircuitBreakerBackend(RedisBackend(url, namespace=namespace)) as backend:
        yield Cache(backend, ttl=60)


@pytest.fixture
async def client(
    fresh_app: FastAPI, committing_database: Database, cache: Cache
) -> AsyncGenerator[AsyncClient]:
    add_cached_notes(fresh_app)
    async with connect(fresh_app, committing_database, own_cache=cache) as client:
        yield client


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_an_outage_costs_nothing_but_speed(
    client: AsyncClient, cache: Cache, proxy: Relay, fault: str
) -> None:
    """Every request succeeds, none shows what was true before a change, and it recovers by itself."""
    note = (await client.post(NOTES, json={"text": "one"})).headers["location"]
    confirmed, statuses, done = 1, set[int](), asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            least = confirmed
            response = await client.get(cached(note))
            statuses.add(response.status_code)
            assert response.json()["version"] >= least
            await asyncio.sleep(0.005)

    async def write() -> None:
        nonlocal confirmed
        while not done.is_set():
            response = await client.patch(note, json={"text": f"number {confirmed}"})
            statuses.add(response.status_code)
            confirmed = response.json()["version"]
            await asyncio.sleep(0.05)

    async def next_change() -> None:
        before = confirmed
        await until(lambda: confirmed > before)

    async with asyncio.TaskGroup() as load:
        for work in (*[read] * CLIENTS, write):
            load.create_task(work())
        await next_change()
        if fault == "killed":
            await proxy.stop()
        else:
            proxy.freeze()
        await until(lambda: not cache.backend.available)
        await asyncio.sleep(1)
        await next_change()
        await proxy.stop()
        await proxy.start()
        await until(lambda: cache.backend.available)
        await next_change()
        done.set()

    assert statuses == {200}
    assert confirmed > 3
