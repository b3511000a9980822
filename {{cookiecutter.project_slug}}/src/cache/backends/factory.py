from src.cache.backends.base import CacheBackend
from src.cache.backends.memory import MemoryBackend
from src.core.config import Settings


def create_backend(settings: Settings) -> CacheBackend:
    """Create the backend that CACHE_BACKEND_TYPE selects.

    A backend that can become unavailable is wrapped in a circuit breaker.
    """
    ttl = settings.CACHE_TTL_SECONDS
    # % if cookiecutter.cache_backend in ["redis", "all"]
    if settings.CACHE_BACKEND_TYPE == "redis":
        from src.cache.backends.redis import RedisBackend  # noqa: PLC0415 - loaded where it is used
        from src.cache.engine.circuit_breaker import CircuitBreakerBackend  # noqa: PLC0415 - as above

        namespace = settings.cache_namespace
        return CircuitBreakerBackend(RedisBackend(settings.redis_url, namespace=namespace, ttl=ttl))
    # % endif
    # % if cookiecutter.cache_backend in ["file", "all"]
    if settings.CACHE_BACKEND_TYPE == "file":
        from src.cache.backends.file import FileBackend  # noqa: PLC0415 - loaded where it is used
        from src.cache.engine.circuit_breaker import CircuitBreakerBackend  # noqa: PLC0415 - as above

        max_bytes = settings.CACHE_FILE_MAX_MEGABYTES * 2**20
        backend = FileBackend(settings.cache_folder, ttl=ttl, max_bytes=max_bytes)
        return CircuitBreakerBackend(backend)
    # % endif
    return MemoryBackend(ttl=ttl, max_bytes=settings.CACHE_MEMORY_MAX_MEGABYTES * 2**20)
