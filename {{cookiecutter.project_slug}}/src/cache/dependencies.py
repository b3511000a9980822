from starlette.requests import HTTPConnection

from src.cache.backends.base import CacheBackend


async def get_cache(connection: HTTPConnection) -> CacheBackend:
    """Return the cache backend of the process: `cache: CacheBackend = Depends(get_cache)`."""
    backend: CacheBackend = connection.state.cache.backend
    return backend
