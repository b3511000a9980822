from typing import Any

from pydantic import BaseModel, Field


class CacheInfo(BaseModel):
    backend: str = Field(
        description="Cache backend, as `CACHE_BACKEND_TYPE` selects it.", examples=["memory"]
    )
    available: bool = Field(
        description="False while the cache backend is unavailable. Values are not cached then.",
        examples=[True],
    )
    ttl_seconds: float = Field(
        description="Default TTL of cached values, from `CACHE_TTL_SECONDS`.", examples=[300]
    )
    state: dict[str, Any] = Field(
        description=(
            "Details from the backend, such as the number of entries. Empty while it is unavailable."
        ),
        examples=[{"entries": 128, "bytes": 65536}],
    )
