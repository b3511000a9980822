"""Counters of rate limits in Valkey."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from httpx import AsyncClient
from redis.asyncio import Redis
from sqlalchemy import URL

from src.cache.backends.redis import RedisBackend
from src.core.redis_url import RedisURL
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT, serving
from tests.fixtures.environment import API
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


@pytest.mark.slow
async def test_service_serves_while_the_server_hangs(proxy: Proxy, committing_url: URL) -> None:
    """Two processes share the limit. During the outage they log one warning each and wait once."""
    variables = {
        "API_KEYS": "",
        "CACHE_BACKEND_TYPE": "redis",
        "DATABASE_URL": committing_url.render_as_string(hide_password=False),
        "RATE_LIMIT": "6/hour",
        "REDIS_URL": f"redis://127.0.0.1:{proxy.port}",
    }

    async with AsyncExitStack() as stack:
        clients, processes = [], []
        for _ in range(2):
            process, address = await asyncio.to_thread(stack.enter_context, serving(**variables))
            client = AsyncClient(base_url=address, headers=HEADERS, timeout=LIMIT)
            clients.append(await stack.enter_async_context(client))
            processes.append(process)

        async def get_all() -> list[int]:
            """Send four requests to each process; return the statuses."""
            paths = [f"{API}/app-info"] * 4
            return [(await each.get(path)).status_code for each in clients for path in paths]

        async def is_limited() -> bool:
            return 429 in await get_all()

        shared = await get_all()
        proxy.freeze()
        during_outage = await get_all()
        unchecked = [(await each.get("/metrics")).text for each in clients]
        await proxy.stop()
        await proxy.start()
        await until(is_limited)
        warnings = [each.log_text.count("cache_unavailable") for each in processes]

    assert shared == [200] * 6 + [429] * 2
    assert during_outage == [200] * 8
    assert all("rate_limit_unchecked_requests_total 4.0" in each for each in unchecked)
    assert warnings == [1, 1]
