"""Inspect and clear the cache."""

from fastapi import APIRouter, Request, status

from src.api.deps import ApiKey
from src.cache import Cache
from src.schemas.cache import CacheInfo

router = APIRouter(prefix="/cache", tags=["cache"], dependencies=[ApiKey])


@router.get("/info")
async def cache_info(request: Request) -> CacheInfo:
    cache: Cache = request.state.cache
    backend = cache.backend
    state = await backend.info()
    return CacheInfo(
        backend=backend.name, available=backend.available, ttl_seconds=cache.ttl, state=state
    )


@router.post("/clear", status_code=status.HTTP_204_NO_CONTENT)
async def clear_cache(request: Request) -> None:
    """Delete all cached values. If the cache is unavailable: once it has recovered."""
    await request.state.cache.backend.flush()
