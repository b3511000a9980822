from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, Field

Status = Literal["ok", "unavailable"]


class Liveness(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Status
    checks: dict[str, Status] = Field(
        description="Status of each dependency.", examples=[{"database": "ok"}]
    )

    @classmethod
    def of(cls, results: Mapping[str, bool]) -> Self:
        return cls(
            status=_status(all(results.values())),
            checks={name: _status(passed) for name, passed in results.items()},
        )


class AppInfo(BaseModel):
    name: str
    description: str
    version: str
    environment: str


def _status(passed: bool) -> Status:
    return "ok" if passed else "unavailable"
