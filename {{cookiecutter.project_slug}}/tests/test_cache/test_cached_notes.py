"""A cached response is never older than the last committed change."""

import asyncio
from itertools import count
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from src.cache import Cache, MemoryBackend
from src.db.reader import Reader
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES
from tests.fixtures.statements import recorded
from tests.test_cache.cached_notes import CACHED_NOTES, add_cached_notes, cached_path


@pytest.fixture
def cache() -> Cache:
    return Cache(MemoryBackend(), ttl=60)


@pytest.fixture
def client(fresh_app: FastAPI, committing_database: Database, cache: Cache) -> AsyncClient:
    add_cached_notes(fresh_app)
    return connect(fresh_app, committing_database, cache=cache)


@pytest.fixture
async def note(client: AsyncClient) -> str:
    return str((await client.post(NOTES, json={"text": "one"})).headers["location"])


async def test_responses_are_cached_until_a_change(
    client: AsyncClient, committing_database: Database, note: str
) -> None:
    """A change invalidates the note and the list, but no other note."""
    other = (await client.post(NOTES, json={"text": "other"})).headers["location"]
    for path in (cached_path(note), cached_path(other), CACHED_NOTES):
        first = await client.get(path)
        with recorded(committing_database) as sent:
            second = await client.get(path)
        assert (sent, second.content) == ([], first.content)
        assert second.headers["etag"] == first.headers["etag"]

    await client.patch(note, json={"text": "two"})

    assert (await client.get(cached_path(note))).json()["text"] == "two"
    assert (await client.get(CACHED_NOTES)).json()[0]["text"] == "two"
    with recorded(committing_database) as sent:
        await client.get(cached_path(other))
    assert sent == []

    await client.delete(note)

    assert (await client.get(cached_path(note))).status_code == 404
    assert len((await client.get(CACHED_NOTES)).json()) == 1


async def test_response_computed_before_a_change_is_not_cached(
    client: AsyncClient, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read starts before the commit and ends after it."""
    has_read, may_respond = asyncio.Event(), asyncio.Event()
    read = Reader.rows

    async def read_and_wait(reader: Reader, *arguments: Any) -> Any:
        rows = await read(reader, *arguments)
        if not has_read.is_set():
            has_read.set()
            await may_respond.wait()
        return rows

    monkeypatch.setattr(Reader, "rows", read_and_wait)
    reading = asyncio.create_task(client.get(cached_path(note)))
    await has_read.wait()
    await client.patch(note, json={"text": "two"})
    during = await client.get(cached_path(note))
    may_respond.set()

    assert (await reading).json()["text"] == "one"
    assert during.json()["text"] == "two"
    assert (await client.get(cached_path(note))).json()["text"] == "two"


async def test_no_response_is_older_than_the_last_committed_change(
    client: AsyncClient, note: str
) -> None:
    """With concurrent writers and readers, of the note and of the list."""
    committed = 1
    numbers = count()
    done = asyncio.Event()

    async def write() -> None:
        nonlocal committed
        for _ in range(8):
            changed = await client.patch(note, json={"text": f"number {next(numbers)}"})
            committed = max(committed, changed.json()["version"])

    async def read() -> int:
        reads = 0
        while not done.is_set():
            minimum = committed
            assert (await client.get(cached_path(note))).json()["version"] >= minimum
            minimum = committed
            assert (await client.get(CACHED_NOTES)).json()[0]["version"] >= minimum
            reads += 2
            await asyncio.sleep(0)  # a cache hit in memory does not yield to the event loop
        return reads

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await asyncio.gather(*(write() for _ in range(4)))
    done.set()

    assert sum(await asyncio.gather(*readers)) > 32
    assert committed == 33
