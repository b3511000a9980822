from typing import Literal

from pydantic import BaseModel, Field


class Liveness(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ok", "unavailable"]
    checks: dict[str, Literal["ok", "unavailable"]] = Field(
        description="Each part that the service needs.", examples=[{"database": "ok"}]
    )


class AppInfo(BaseModel):
    name: str
    description: str
    version: str
    environment: str
