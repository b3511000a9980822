from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, Field

Status = Literal["ok", "unavailable"]


class Liveness(BaseModel):
    status: Literal["ok"] = Field(default="ok", description="Always `ok`.")


class Readiness(BaseModel):
    status: Status = Field(description="`ok` if the process can serve requests.")
    checks: dict[str, Status] = Field(
        description="The status of each dependency.", examples=[{"database": "ok"}]
    )

    @classmethod
    def of(cls, results: Mapping[str, bool]) -> Self:
        return cls(
            status=_status(all(results.values())),
            checks={name: _status(passed) for name, passed in results.items()},
        )


class AppInfo(BaseModel):
    name: str = Field(description="The name of the service (`PROJECT_NAME`).")
    description: str = Field(description="What the service does (`PROJECT_DESCRIPTION`).")
    version: str = Field(description="The version of the service.", examples=["1.4.0"])
    environment: str = Field(description="Where the service runs (`ENV`).", examples=["production"])


def _status(passed: bool) -> Status:
    return "ok" if passed else "unavailable"
