from fastapi import Request

from src.cache.backends.base import CacheBackend


async def get_cache(request: Request) -> CacheBackend:
    """Return the cache backend of the process: `cache: CacheBackend = Depends(get_cache)`."""
    backend: CacheBackend = request.state.cache.backend
    return backend
