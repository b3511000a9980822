"""`/api/v1/cache/`: inspect and clear the cache."""

from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import SecretStr

from src.cache import Cache, CacheBackend, MemoryBackend
from src.cache.dependencies import get_cache
from src.core.config import Settings
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.environment import API

INFO = f"{API}/cache/info"
CLEAR = f"{API}/cache/clear"
KEY = "k" * 32


async def test_inspect_and_clear_the_cache(
    app: FastAPI, database: Database, settings: Settings
) -> None:
    """Both need an API key. A GET request never clears the cache."""
    cache = Cache(MemoryBackend(), ttl=60)
    protected = settings.model_copy(update={"API_KEYS": [SecretStr(KEY)]})
    client = connect(app, database, protected, cache=cache)
    headers = {"X-API-Key": KEY}
    await cache.backend.set("one", "1")

    info = await client.get(INFO, headers=headers)
    refused = [await client.get(INFO), await client.post(CLEAR)]
    refused.append(await client.get(CLEAR, headers=headers))

    body = info.json()
    assert (body["backend"], body["available"], body["ttl_seconds"]) == ("memory", True, 60)
    assert body["state"]["entries"] == 1
    assert "://" not in info.text
    assert settings.POSTGRES_PASSWORD.get_secret_value() not in info.text
    assert [response.status_code for response in refused] == [401, 401, 405]
    assert await cache.backend.get("one") == "1"

    assert (await client.post(CLEAR, headers=headers)).status_code == 204
    assert await cache.backend.get("one") is None


async def test_endpoint_gets_the_backend(fresh_app: FastAPI, database: Database) -> None:
    @fresh_app.get("/stored")
    async def stored(cache: Annotated[CacheBackend, Depends(get_cache)]) -> str:
        await cache.set("key", "value", ex=300)
        return str(await cache.get("key"))

    assert (await connect(fresh_app, database).get("/stored")).json() == "value"
