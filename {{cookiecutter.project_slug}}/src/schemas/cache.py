from typing import Any

from pydantic import BaseModel, Field


class CacheInfo(BaseModel):
    backend: str = Field(examples=["memory"])
    available: bool = Field(description="False while it is out of reach, and left alone.")
    ttl_seconds: float = Field(description="How long a value lives unless something else is said.")
    state: dict[str, Any] = Field(
        description="What the backend tells of itself.", examples=[{"entries": 128}]
    )
