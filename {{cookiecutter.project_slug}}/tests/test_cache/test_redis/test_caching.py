import pytest

from src.core.redis_url import RedisURL
from tests.test_cache.caching_contract import SharedCachingContract


class TestCaching(SharedCachingContract):
    @pytest.fixture
    def variables(self, url: RedisURL, namespace: str) -> dict[str, str]:
        return {
            "CACHE_BACKEND_TYPE": "redis",
            "REDIS_URL": url.server,
            "CACHE_NAMESPACE": namespace,
        }
