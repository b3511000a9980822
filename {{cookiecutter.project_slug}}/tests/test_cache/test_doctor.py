"""The check of `python cli.py doctor` for the cache."""

from src.cache.doctor import check_cache
from src.core.config import Settings


async def test_the_backend_is_described() -> None:
    assert await check_cache(Settings(CACHE_BACKEND_TYPE="memory")) == "memory, 0 entries"
