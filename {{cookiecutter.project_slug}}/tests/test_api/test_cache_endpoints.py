"""`/api/v1/cache/…`: a look into the cache, and a way to empty it."""

import json

from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import SecretStr

from src.cache import Cache, MemoryBackend
from src.core.config import Settings
from src.db.session import Database
from tests.fixtures.client import connect

INFO = "/api/v1/cache/info"
CLEAR = "/api/v1/cache/clear"
KEY = "k" * 32


async def test_info_tells_what_is_in_the_cache(app: FastAPI, database: Database) -> None:
    cache = Cache(MemoryBackend(), ttl=60)
    client = connect(app, database, own_cache=cache)
    await cache.backend.set("one", "1")
    answer = (await client.get(INFO)).json()

    assert answer["backend"] == "memory"
    assert answer["available"] is True
    assert answer["ttl_seconds"] == 60
    assert answer["state"]["entries"] == 1


async def test_clear_forgets_everything(app: FastAPI, database: Database) -> None:
    cache = Cache(MemoryBackend(), ttl=60)
    client = connect(app, database, own_cache=cache)
    await cache.backend.set("one", "1")

    assert (await client.post(CLEAR)).status_code == 204
    assert await cache.backend.get("one") is None


async def test_clearing_is_no_get(client: AsyncClient) -> None:
    """What crawlers and prefetching browsers follow must change nothing."""
    assert (await client.get(CLEAR)).status_code == 405


async def test_both_want_the_key(app: FastAPI, database: Database, settings: Settings) -> None:
    locked = settings.model_copy(update={"API_KEYS": [SecretStr(KEY)]})
    client = connect(app, database, locked)
    assert (await client.get(INFO)).status_code == 401
    assert (await client.post(CLEAR)).status_code == 401

    headers = {"X-API-Key": KEY}
    assert (await client.get(INFO, headers=headers)).status_code == 200
    assert (await client.post(CLEAR, headers=headers)).status_code == 204


async def test_info_holds_no_secret(client: AsyncClient, settings: Settings) -> None:
    """Neither a URL nor a password of any server."""
    text = json.dumps((await client.get(INFO)).json())
    assert "://" not in text
    assert settings.POSTGRES_PASSWORD.get_secret_value() not in text
