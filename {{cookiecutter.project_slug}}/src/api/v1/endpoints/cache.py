"""Inspect and clear the cache."""

from fastapi import APIRouter, Request, status

from src.api.auth import require
from src.cache import Cache
from src.domain.principal import Scope
from src.schemas.cache import CacheInfo

router = APIRouter(prefix="/cache", tags=["cache"], dependencies=[require(Scope.CACHE_WRITE)])


@router.get("/info", summary="Inspect Cache")
async def cache_info(request: Request) -> CacheInfo:
    """Return the cache backend, whether it is available, and the number of entries."""
    cache: Cache = request.state.cache
    backend = cache.backend
    state = await backend.info()
    return CacheInfo(
        backend=backend.name, available=backend.available, ttl_seconds=cache.ttl, state=state
    )


@router.post("/clear", status_code=status.HTTP_204_NO_CONTENT)
async def clear_cache(request: Request) -> None:
    """Delete all cached values of this service.

    If the cache backend is unavailable, the values are deleted as soon as it recovers.
    """
    await request.state.cache.backend.flush()
