"""Inspect and clear the cache."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, status

from src.api.deps import ApiKey
from src.cache import Cache
from src.schemas.cache import CacheInfo

router = APIRouter(prefix="/cache", tags=["cache"], dependencies=[ApiKey])


async def _get_cache(request: Request) -> Cache:
    cache: Cache = request.state.cache
    return cache


CurrentCache = Annotated[Cache, Depends(_get_cache)]


@router.get("/info")
async def cache_info(cache: CurrentCache) -> CacheInfo:
    backend = cache.backend
    state = await backend.info()
    return CacheInfo(
        backend=backend.name, available=backend.available, ttl_seconds=cache.ttl, state=state
    )


@router.post("/clear", status_code=status.HTTP_204_NO_CONTENT)
async def clear_cache(cache: CurrentCache) -> None:
    """Delete all cached values. If the cache is unavailable: once it has recovered."""
    await cache.backend.flush()
