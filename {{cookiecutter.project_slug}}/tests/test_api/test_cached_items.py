"""Items are read from the cache, and never as they were before a change."""

import asyncio
from itertools import count

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import event, update
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from src.cache import Cache, MemoryBackend, invalidate, use_cache
from src.db import session as db_session
from src.db.models.item import Item
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.statements import recorded

ITEMS = "/api/v1/items/"


@pytest.fixture(autouse=True)
def _patient_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a connection may be long in use."""
    monkeypatch.setattr(db_session, "POOL_TIMEOUT_SECONDS", 60)


@pytest.fixture
async def item(committing_client: AsyncClient) -> str:
    path: str = (await committing_client.post(ITEMS, json={"name": "Lamp"})).headers["location"]
    return path


@pytest.mark.parametrize("path", ["{item}", ITEMS, f"{ITEMS}search?q=lamp"])
async def test_a_second_read_sends_no_statement(
    committing_client: AsyncClient, committing_database: Database, item: str, path: str
) -> None:
    path = path.replace("{item}", item)
    first = await committing_client.get(path)
    with recorded(committing_database) as sent:
        second = await committing_client.get(path)

    assert sent == []
    assert second.content == first.content
    assert second.headers["etag"] == first.headers["etag"]


async def test_a_change_is_seen_at_once(committing_client: AsyncClient, item: str) -> None:
    """In the item, in the list and in what is found."""
    for _ in range(2):
        await committing_client.get(item)
        await committing_client.get(ITEMS)
        await committing_client.get(f"{ITEMS}search?q=table")

    await committing_client.patch(item, json={"name": "Table"})

    assert (await committing_client.get(item)).json()["name"] == "Table"
    assert (await committing_client.get(ITEMS)).json()["items"][0]["name"] == "Table"
    assert len((await committing_client.get(f"{ITEMS}search?q=table")).json()["items"]) == 1

    await committing_client.delete(item)

    assert (await committing_client.get(item)).status_code == 404
    assert (await committing_client.get(ITEMS)).json()["items"] == []


async def test_a_missing_item_is_asked_for_again(committing_client: AsyncClient, item: str) -> None:
    """That there is none is not kept, or a new one would not be found."""
    missing = f"{ITEMS}019ab1f0-0000-7000-8000-000000000000"
    assert (await committing_client.get(missing)).status_code == 404
    assert (await committing_client.get(item)).status_code == 200


async def test_another_item_stays_cached(
    committing_client: AsyncClient, committing_database: Database, item: str
) -> None:
    other = (await committing_client.post(ITEMS, json={"name": "Chair"})).headers["location"]
    await committing_client.get(item)
    await committing_client.patch(other, json={"name": "Bench"})
    with recorded(committing_database) as sent:
        await committing_client.get(item)

    assert sent == []


async def test_the_etag_of_a_cached_item_serves_a_change(
    committing_client: AsyncClient, item: str
) -> None:
    """It is the version, as ever; and it tells a client that nothing has changed."""
    for _ in range(2):
        read = await committing_client.get(item)
    known = {"If-None-Match": read.headers["etag"]}
    assert (await committing_client.get(item, headers=known)).status_code == 304

    change = {"If-Match": read.headers["etag"]}
    changed = await committing_client.patch(item, json={"name": "Table"}, headers=change)
    assert changed.status_code == 200
    assert (await committing_client.get(item, headers=known)).json()["name"] == "Table"


async def test_a_change_that_is_rolled_back_invalidates_nothing(
    committing_client: AsyncClient, committing_database: Database, item: str
) -> None:
    await committing_client.get(item)
    await committing_client.patch(item, json={"status": "archived"})
    await committing_client.get(item)
    refused = await committing_client.patch(item, json={"name": "Table"})
    with recorded(committing_database) as sent:
        await committing_client.get(item)

    assert refused.status_code == 409
    assert sent == []


async def test_a_read_under_way_during_a_change_is_not_kept(
    app: FastAPI, committing_database: Database, item: str
) -> None:
    """It began before the commit and ends after it, with what was true before."""
    client = connect(app, committing_database)
    has_read, may_answer = asyncio.Event(), asyncio.Event()
    engine = committing_database.reads.kw["bind"]
    assert isinstance(engine, AsyncEngine)

    async def hold() -> None:
        has_read.set()
        await may_answer.wait()

    def pause(*_: object) -> None:
        await_only(hold())

    event.listen(engine.sync_engine, "after_cursor_execute", pause, once=True)
    reading = asyncio.create_task(client.get(item))
    await has_read.wait()
    changed = await client.patch(item, json={"name": "Table"})
    during = await client.get(item)
    may_answer.set()
    old = await reading

    assert changed.status_code == 200
    assert old.json()["name"] == "Lamp"
    assert during.json()["name"] == "Table"
    assert (await client.get(item)).json()["name"] == "Table"


async def test_no_read_is_older_than_the_last_change_that_was_confirmed(
    committing_client: AsyncClient, item: str
) -> None:
    """With writers and readers at once, of the item and of the list."""
    confirmed = 1
    numbers = count()
    done = asyncio.Event()

    async def write() -> None:
        nonlocal confirmed
        for _ in range(8):
            changed = await committing_client.patch(item, json={"name": f"Lamp {next(numbers)}"})
            confirmed = max(confirmed, changed.json()["version"])

    async def read() -> int:
        reads = 0
        while not done.is_set():
            least = confirmed
            version = (await committing_client.get(item)).json()["version"]
            assert version >= least
            least = confirmed
            listed = (await committing_client.get(ITEMS)).json()["items"][0]["version"]
            assert listed >= least
            reads += 2
            await asyncio.sleep(0)  # a hit in memory waits for nothing, and lets nobody else on
        return reads

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await asyncio.gather(*(write() for _ in range(4)))
    done.set()

    assert sum(await asyncio.gather(*readers)) > 32
    assert confirmed == 33


async def test_a_statement_over_rows_invalidates_what_it_is_told_to(
    app: FastAPI, committing_database: Database, item: str
) -> None:
    """It tells nobody which rows it has changed."""
    cache = Cache(MemoryBackend(), ttl=60)
    client = connect(app, committing_database, own_cache=cache)
    await client.get(item)
    with use_cache(cache):
        async with committing_database.transaction() as session:
            await session.execute(update(Item).values(name="Table"))
            await invalidate(tags=[f"item:{item.rpartition('/')[2]}"])
            assert (await client.get(item)).json()["name"] == "Lamp"

    assert (await client.get(item)).json()["name"] == "Table"


async def test_a_change_with_an_idempotency_key_is_seen_at_once(
    committing_client: AsyncClient,
) -> None:
    """Its transaction is committed by `IdempotencyMiddleware`."""
    for _ in range(2):
        assert (await committing_client.get(ITEMS)).json()["items"] == []

    created = await committing_client.post(
        ITEMS, json={"name": "Lamp"}, headers={"Idempotency-Key": "one"}
    )

    assert (await committing_client.get(ITEMS)).json()["items"] == [created.json()]
