"""`@cached` while the backend is away."""

import asyncio

import pytest

from src.cache import Cache, CacheUnavailableError, MemoryBackend, cached, use_cache
from src.cache.engine.cache import WAIT_SECONDS
from src.cache.engine.circuit_breaker import CircuitBreakerBackend


class Away(MemoryBackend):
    async def get(self, key: str) -> str | bytes | None:
        raise CacheUnavailableError(key)

    async def ping(self) -> None:
        raise CacheUnavailableError("ping")


@pytest.mark.parametrize("tags", [(), ("numbers",)], ids=["untagged", "tagged"])
async def test_while_the_cache_is_away_each_call_runs(tags: tuple[str, ...]) -> None:
    calls = 0

    @cached(tags=tags)
    async def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    async with CircuitBreakerBackend(Away()) as backend:
        with use_cache(Cache(backend, ttl=60)):
            async with asyncio.timeout(WAIT_SECONDS / 2):
                assert await asyncio.gather(*(count() for _ in range(5))) == [1, 2, 3, 4, 5]
