from typing import Any

from pydantic import BaseModel, Field


class CacheInfo(BaseModel):
    backend: str = Field(examples=["memory"])
    available: bool = Field(description="False while the cache server is unavailable.")
    ttl_seconds: float = Field(description="Default TTL.")
    state: dict[str, Any] = Field(
        description="Details of the backend.", examples=[{"entries": 128}]
    )
