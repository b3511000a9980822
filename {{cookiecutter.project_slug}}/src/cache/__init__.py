"""The cache: docs/cache.md tells how to use it."""

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError
from src.cache.backends.memory import MemoryBackend
from src.cache.decorators import cached, invalidate, invalidate_cache
from src.cache.dependencies import get_cache
from src.cache.engine.cache import Cache, Policy, current_cache, open_cache, use_cache
from src.cache.engine.models import watch_models

__all__ = [
    "Cache",
    "CacheBackend",
    "CacheError",
    "CacheUnavailableError",
    "MemoryBackend",
    "Policy",
    "cached",
    "current_cache",
    "get_cache",
    "invalidate",
    "invalidate_cache",
    "open_cache",
    "use_cache",
]

watch_models()
