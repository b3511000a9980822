"""`/api/v1/cache/…`: a look into the cache, and a way to empty it."""

from fastapi import FastAPI
from pydantic import SecretStr

from src.cache import Cache, MemoryBackend
from src.core.config import Settings
from src.db.session import Database
from tests.fixtures.client import connect

INFO = "/api/v1/cache/info"
CLEAR = "/api/v1/cache/clear"
KEY = "k" * 32


async def test_look_in_and_empty(app: FastAPI, database: Database, settings: Settings) -> None:
    """With the key alone; and what crawlers and prefetching browsers follow changes nothing."""
    cache = Cache(MemoryBackend(), ttl=60)
    locked = settings.model_copy(update={"API_KEYS": [SecretStr(KEY)]})
    client = connect(app, database, locked, own_cache=cache)
    headers = {"X-API-Key": KEY}
    await cache.backend.set("one", "1")

    info = await client.get(INFO, headers=headers)
    refused = [await client.get(INFO), await client.post(CLEAR)]
    refused.append(await client.get(CLEAR, headers=headers))

    answer = info.json()
    assert (answer["backend"], answer["available"], answer["ttl_seconds"]) == ("memory", True, 60)
    assert answer["state"]["entries"] == 1
    assert "://" not in info.text
    assert settings.POSTGRES_PASSWORD.get_secret_value() not in info.text
    assert [response.status_code for response in refused] == [401, 401, 405]
    assert await cache.backend.get("one") == "1"

    assert (await client.post(CLEAR, headers=headers)).status_code == 204
    assert await cache.backend.get("one") is None
