"""The backend in a Cluster, be it of one node."""

from collections.abc import AsyncGenerator

import pytest
from redis.asyncio import Redis

from dev.valkey import embedded_valkey
from src.cache.backends.redis import RedisBackend
from src.core import redis_url
from src.core.redis_url import RedisURL
from tests.test_cache.contract import BackendContract, until
from tests.test_cache.test_redis.servers import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("url"),  # it skips without the wheel
]


@pytest.fixture(scope="module")
async def cluster_url() -> AsyncGenerator[RedisURL]:
    port = free_port()
    options = ["--cluster-enabled", "yes", "--port", str(port), "--cluster-port", str(free_port())]
    with embedded_valkey(options) as socket:
        async with Redis(unix_socket_path=redis_url.parse(socket).options["path"]) as node:
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_up() -> bool:
                return b"cluster_state:ok" in await node.execute_command("CLUSTER", "INFO")

            await until(is_up)
        yield redis_url.parse(f"redis+cluster://127.0.0.1:{port}")


class TestCluster(BackendContract):
    @pytest.fixture
    async def backend(self, cluster_url: RedisURL, namespace: str) -> AsyncGenerator[RedisBackend]:
        async with RedisBackend(cluster_url, namespace=namespace) as backend:
            yield backend

    @pytest.fixture
    async def neighbour(
        self, cluster_url: RedisURL, namespace: str
    ) -> AsyncGenerator[RedisBackend]:
        async with RedisBackend(cluster_url, namespace=f"{namespace}2") as backend:
            yield backend
