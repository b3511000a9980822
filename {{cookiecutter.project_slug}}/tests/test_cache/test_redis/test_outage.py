"""The whole service while Valkey fails under load, and recovers."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from src.cache import Cache
from src.cache.backends.redis import RedisBackend
from src.cache.engine.circuit_breaker import CircuitBreakerBackend
from src.core import redis_url
from src.db import session as db_session
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES
from tests.proxy import Relay
from tests.test_cache.cached_notes import add_cached_notes, cached
from tests.test_cache.contract import until

CLIENTS = 20


@pytest.fixture(autouse=True)
def _patient_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a connection may be long in use."""
    monkeypatch.setattr(db_session, "POOL_TIMEOUT_SECONDS", 60)


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


class Load:
    """Clients that read a note, one request after the other, and change it now and then."""

    def __init__(self, client: AsyncClient, note: str) -> None:
        self.client = client
        self.note = note
        self.confirmed = 1
        self.statuses: set[int] = set()
        self._done = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._read()) for _ in range(CLIENTS)]
        self._tasks.append(asyncio.create_task(self._write()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done.set()
        await asyncio.gather(*self._tasks)

    async def next_change(self) -> None:
        before = self.confirmed

        async def is_changed() -> bool:
            return self.confirmed > before

        await until(is_changed)

    async def _read(self) -> None:
        while not self._done.is_set():
            least = self.confirmed
            response = await self.client.get(cached(self.note))
            self.statuses.add(response.status_code)
            assert response.json()["version"] >= least
            await asyncio.sleep(0.005)

    async def _write(self) -> None:
        while not self._done.is_set():
            response = await self.client.patch(self.note, json={"text": f"number {self.confirmed}"})
            self.statuses.add(response.status_code)
            self.confirmed = response.json()["version"]
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_an_outage_costs_nothing_but_speed(
    client: AsyncClient, cache: Cache, proxy: Relay, fault: str
) -> None:
    """Every request succeeds, none shows what was true before a change, and it recovers by itself."""

    async def is_available() -> bool:
        return cache.backend.available

    async def is_unavailable() -> bool:
        return not cache.backend.available

    note = (await client.post(NOTES, json={"text": "one"})).headers["location"]
    async with Load(client, note) as load:
        await load.next_change()
        if fault == "killed":
            await proxy.stop()
        else:
            proxy.freeze()
        await until(is_unavailable)
        await asyncio.sleep(1)
        await load.next_change()
        await proxy.stop()
        await proxy.start()
        await until(is_available)
        await load.next_change()

    assert load.statuses == {200}
    assert load.confirmed > 3
