"""Counters of rate limits in Valkey."""

from redis.asyncio import Redis

from src.cache.backends.redis import RedisBackend
from src.cache.engine.circuit_breaker import CircuitBreakerBackend
from src.core import redis_url
from src.core.redis_url import RedisURL
from tests.proxy import Proxy
from tests.test_cache.contract import keys_of, until


async def test_processes_share_counters(
    url: RedisURL, backend: RedisBackend, namespace: str
) -> None:
    async with RedisBackend(url, namespace=namespace) as other:
        numbers = [(await each.count("caller", 60)).number for each in (backend, other, backend)]
        await backend.flush()
        counted = await other.count("caller", 60)

    assert numbers == [1, 2, 3]
    assert counted.number == 4
    assert 0 < counted.seconds_left <= 60
    assert await keys_of(backend) == []


async def test_counter_whose_expiry_was_lost_expires(
    server: Redis, backend: RedisBackend, namespace: str
) -> None:
    """The connection may be lost between the two commands."""
    await backend.count("caller", 60)
    (name,) = [key async for key in server.scan_iter(f"*{namespace}*")]
    await server.persist(name)

    assert (await backend.count("caller", 60)).seconds_left > 0


async def test_requests_are_not_counted_during_an_outage(proxy: Proxy, namespace: str) -> None:
    url = redis_url.parse(f"redis://127.0.0.1:{proxy.port}")
    redis = RedisBackend(url, namespace=namespace)
    async with CircuitBreakerBackend(redis, retry_seconds=0.01) as backend:
        assert await backend.count("caller", 60) is not None
        await proxy.stop()
        assert await backend.count("caller", 60) is None
        assert not backend.available
        await proxy.start()
        await until(lambda: backend.available)

        counted = await backend.count("caller", 60)

    assert counted is not None
    assert counted.number == 2
