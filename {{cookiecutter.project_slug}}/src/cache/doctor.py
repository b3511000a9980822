"""A check of the cache, for `python cli.py doctor`."""

from src.cache.backends.base import CacheError
from src.cache.backends.factory import create_backend
from src.core.config import Settings
from src.doctor import CheckError


async def check_cache(settings: Settings) -> str:
    backend = create_backend(settings)
    backend = getattr(backend, "inner", backend)  # the circuit breaker hides the reason
    async with backend:
        try:
            await backend.ping()
            info = await backend.info()
        except CacheError as error:
            raise CheckError(
                error, "Correct its settings. Until then, the service works without it."
            ) from error
    return f"{info.get('server', backend.name)}, {info['entries']} entries"


CHECKS = {"cache": check_cache}
