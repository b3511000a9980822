"""Caching: `@cached`, `@invalidate_cache` and direct access to the cache; see docs/caching.md.

`engine` and `backends` are internal: you do not need to change them.
"""

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError
from src.cache.backends.memory import MemoryBackend
from src.cache.decorators import cached, invalidate, invalidate_cache
from src.cache.dependencies import get_cache
from src.cache.engine.cache import Cache, current_cache, open_cache, use_cache
from src.cache.engine.models import invalidate_on_model_changes

__all__ = [
    "Cache",
    "CacheBackend",
    "CacheError",
    "CacheUnavailableError",
    "MemoryBackend",
    "cached",
    "current_cache",
    "get_cache",
    "invalidate",
    "invalidate_cache",
    "open_cache",
    "use_cache",
]

invalidate_on_model_changes()
