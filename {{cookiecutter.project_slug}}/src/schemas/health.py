from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, Field

Word = Literal["ok", "unavailable"]


class Liveness(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Word
    checks: dict[str, Word] = Field(
        description="Each part that the service needs.", examples=[{"database": "ok"}]
    )

    @classmethod
    def of(cls, results: Mapping[str, bool]) -> Self:
        """Describe which checks passed."""
        return cls(
            status=_word(all(results.values())),
            checks={name: _word(passed) for name, passed in results.items()},
        )


class AppInfo(BaseModel):
    name: str
    description: str
    version: str
    environment: str


def _word(passed: bool) -> Word:
    return "ok" if passed else "unavailable"
