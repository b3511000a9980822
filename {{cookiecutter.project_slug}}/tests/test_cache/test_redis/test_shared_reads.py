"""A cache hit is one command to the server, and concurrent hits share it."""

import asyncio
from collections.abc import Sequence

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from redis.asyncio import Redis

from src.cache import Cache
from src.cache.backends import redis_reads
from src.cache.backends.redis import RedisBackend
from src.cache.backends.redis_reads import SharedReads
from src.cache.engine import circuit_breaker
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES
from tests.test_cache.cached_notes import add_cached_notes, cached_path

HITS = 32


@pytest.fixture
def client(
    fresh_app: FastAPI,
    committing_database: Database,
    backend: RedisBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncClient:
    # After a slow operation, as on a busy machine, the circuit breaker sends pings.
    monkeypatch.setattr(circuit_breaker, "SLOW_SECONDS", 60)
    add_cached_notes(fresh_app)
    cache = Cache(circuit_breaker.CircuitBreakerBackend(backend), ttl=60)
    return connect(fresh_app, committing_database, cache=cache)


async def commands(server: Redis) -> dict[str, int]:
    """Return how often each command was called since `config_resetstat()`."""
    statistics = await server.info("commandstats")
    own = {"cmdstat_config|resetstat", "cmdstat_info"}
    return {
        name.removeprefix("cmdstat_"): each["calls"]
        for name, each in statistics.items()
        if name not in own
    }


async def test_a_cached_response_is_one_command(client: AsyncClient, server: Redis) -> None:
    """It reads the response and the versions of its tags."""
    created = await client.post(NOTES, json={"text": "one"})
    path = cached_path(created.headers["location"])
    await client.get(path)
    await server.config_resetstat()

    response = await client.get(path)

    assert response.json()["text"] == "one"
    assert await commands(server) == {"mget": 1}


async def test_concurrent_hits_share_commands(client: AsyncClient, server: Redis) -> None:
    """Also for different paths; each caller receives the response of its path."""
    created = [await client.post(NOTES, json={"text": str(number)}) for number in range(4)]
    paths = [cached_path(each.headers["location"]) for each in created]
    for path in paths:
        await client.get(path)
    await server.config_resetstat()

    responses = await asyncio.gather(*(client.get(path) for path in paths * (HITS // 4)))

    assert [each.json()["text"] for each in responses] == ["0", "1", "2", "3"] * (HITS // 4)
    sent = await commands(server)
    assert sent.keys() == {"mget"}
    assert sent["mget"] <= HITS / 8


async def test_a_command_has_a_limited_number_of_names(
    backend: RedisBackend, server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_reads, "MAX_NAMES", 10)
    await backend.set("7", "seven")
    await server.config_resetstat()

    found = await asyncio.gather(*(backend.get(str(number)) for number in range(30)))

    assert [number for number, value in enumerate(found) if value] == [7]
    assert await commands(server) == {"mget": 3}


async def test_a_read_does_not_join_a_command_that_was_sent() -> None:
    """Its result would be older than the call."""
    value, is_sent, may_respond = b"old", asyncio.Event(), asyncio.Event()

    async def read(names: Sequence[str]) -> list[bytes]:
        found = [value for _ in names]
        is_sent.set()
        await may_respond.wait()
        return found

    reads = SharedReads(read)
    earlier = asyncio.create_task(reads.get(["key"]))
    await is_sent.wait()
    value = b"new"
    later = asyncio.create_task(reads.get(["key"]))
    may_respond.set()

    assert await earlier == [b"old"]
    assert await later == [b"new"]
    await reads.aclose()


async def test_a_cancelled_read_does_not_cancel_the_others(backend: RedisBackend) -> None:
    await backend.set("key", "value")
    reads = [asyncio.create_task(backend.get("key")) for _ in range(3)]
    await asyncio.sleep(0)
    reads[0].cancel()

    found = await asyncio.gather(*reads, return_exceptions=True)

    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == ["value", "value"]
