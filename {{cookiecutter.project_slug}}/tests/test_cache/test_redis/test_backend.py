from src.cache.backends.redis import RedisBackend
from tests.test_cache.contract import BackendContract


class TestRedisBackend(BackendContract):
    pass


async def test_a_lease_asked_for_again_is_ones_own(backend: RedisBackend) -> None:
    """As it is when the connection broke before the first answer came."""
    assert await backend.acquire_lease("key", "mine", 60)
    assert await backend.acquire_lease("key", "mine", 60)
    assert not await backend.acquire_lease("key", "yours", 60)
