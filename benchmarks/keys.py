"""Processor time of a read with an API key of the database, beside the same read without.

Without a key, the service lets the developer read. Both run in one process, in turns: without a
cache, and with the response in each cache. A key is read from PostgreSQL for each request;
concurrent requests share the query.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import CONCURRENCY, an_item, cost, migrated
from report import ROUNDS, Costs, report
from sqlalchemy import URL

from dev.valkey import embedded_valkey
from main import create_application
from src.cache import Cache, MemoryBackend
from src.cache.backends.file import FileBackend
from src.cache.backends.redis import RedisBackend
from src.cache.engine.circuit_breaker import CircuitBreakerBackend
from src.core import redis_url
from src.core.config import get_settings
from src.db.session import open_database
from src.domain.principal import Scope
from src.services.api_key import ApiKeyService


async def compare(url: URL, valkey: str, folder: Path) -> None:
    settings = get_settings()
    app = create_application(settings)
    logging.disable(logging.CRITICAL)
    redis = RedisBackend(redis_url.parse(valkey), namespace="bench")
    caches: dict[str, dict[str, Any]] = {
        "PostgreSQL": {},
        "memory": {"cache": Cache(MemoryBackend(), ttl=600)},
        "Valkey": {"cache": Cache(CircuitBreakerBackend(redis), ttl=600)},
        "file": {"cache": Cache(CircuitBreakerBackend(FileBackend(folder)), ttl=600)},
    }
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(url, pool_size=15))
        for each in caches.values():
            for cache in each.values():
                await stack.enter_async_context(cache.backend)
        path = await an_item(database)
        async with database.transaction() as db:
            issued = await ApiKeyService.create(db, "bench", "bench", frozenset(Scope))
        key = (b"x-api-key", issued.text.encode())
        callers: dict[str, list[tuple[bytes, bytes]]] = {"without a key": [], "with a key": [key]}
        for name, each in caches.items():
            state = {"settings": settings, "database": database, **each}
            for clients in (1, CONCURRENCY):
                costs: Costs = {caller: [] for caller in callers}
                for _ in range(ROUNDS):
                    for caller, headers in callers.items():
                        costs[caller].append(
                            await cost(app, path, state, *headers, clients=clients)
                        )
                report(f"A read from {name}, {clients} at the same time", costs)


if __name__ == "__main__":
    with migrated() as url, embedded_valkey() as valkey, TemporaryDirectory() as folder:
        asyncio.run(compare(url, valkey, Path(folder)))
