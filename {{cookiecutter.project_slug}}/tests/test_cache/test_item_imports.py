"""An import invalidates the cached lists of items."""

from fastapi import FastAPI

from src.cache import Cache, MemoryBackend, use_cache
from src.db.session import Database
from src.services.item_import import ItemImportService
from tests.fixtures.client import connect
from tests.fixtures.environment import API

ITEMS = f"{API}/items/"


async def test_import_invalidates_cached_lists(app: FastAPI, committing_database: Database) -> None:
    """Each batch invalidates them when it commits."""
    cache = Cache(MemoryBackend(), ttl=60)
    client = connect(app, committing_database, cache=cache)

    async def read() -> list[str]:
        listed = (await client.get(ITEMS)).json()["items"]
        found = (await client.get(f"{ITEMS}search?q=lamp")).json()["items"]
        assert len(listed) == len(found)
        return [item["name"] for item in listed]

    async with committing_database.transaction() as db:
        started = await ItemImportService.start(db, b"name\nLamp 1\nLamp 2\n")
    assert await read() == []
    with use_cache(cache):
        async with committing_database.transaction() as db:
            await ItemImportService.import_batch(db, started.id, limit=1)
            assert await read() == []
        assert await read() == ["Lamp 1"]
        async with committing_database.transaction() as db:
            await ItemImportService.import_batch(db, started.id, limit=1)

    assert await read() == ["Lamp 2", "Lamp 1"]
