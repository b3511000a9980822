"""A value is restored from the cache exactly, or it is not cached."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

import pytest
from pydantic import BaseModel

from src.cache.engine.codec import codec_for

T = TypeVar("T")


class Color(Enum):
    RED = 1


class Size(StrEnum):
    BIG = "big"


class Model(BaseModel):
    id: UUID
    at: datetime
    price: Decimal | None = None


class Page(BaseModel, Generic[T]):
    entries: list[T]


@dataclass
class Point:
    x: float
    raw: bytes


ID = UUID("018f0000-0000-7000-8000-000000000000")
AT = datetime(2024, 1, 2, 3, 4, 5, 678, timezone(timedelta(hours=2)))
MODEL = Model(id=ID, at=AT, price=Decimal("1.10"))
POINT = Point(float("inf"), b"\xff\0")

CACHED: list[tuple[Any, Any]] = [
    (int, 0),
    (float, 1),
    (bytes | None, b"\xff"),
    (UUID, ID),
    (datetime, AT),
    (Decimal, Decimal("1.10")),
    (Color, Color.RED),
    (Model, MODEL),
    (list[Model], [MODEL]),
    (Model | None, None),
    (Page[Model], Page[Model](entries=[MODEL])),
    (Point, POINT),
    (int | str | Model, 1),
    (dict[int, tuple[str, Color]], {1: ("a", Color.RED)}),
    (set[UUID], {ID}),
    (dict, {"a": [1, None, True, 1.5]}),
    (dict[str, Any], {"a": {"b": []}}),
    (None, None),
]
NOT_CACHED: list[tuple[Any, Any]] = [
    (dict, {1: "a"}),
    (dict[str, Any], {"at": AT}),
    (dict[str, Any], {"size": Size.BIG}),
    (str, Size.BIG),
    (list[int], [True]),
    (bytes, bytearray(b"a")),
    (bytes, None),
    (int, "text"),
    (float, float("nan")),
    (str, "\ud800"),
]


def returning(annotation: Any) -> Any:
    async def function() -> Any: ...

    function.__annotations__["return"] = annotation
    return function


@pytest.mark.parametrize(("annotation", "value"), CACHED, ids=str)
def test_value_is_restored_exactly(annotation: Any, value: Any) -> None:
    codec = codec_for(returning(annotation))

    data = codec.encode(value)

    assert data is not None
    found = codec.decode(data)
    assert found == value
    assert type(found) is (float if annotation is float else type(value))


@pytest.mark.parametrize(("annotation", "value"), NOT_CACHED, ids=str)
def test_value_that_would_be_restored_differently_is_not_cached(
    annotation: Any, value: Any
) -> None:
    assert codec_for(returning(annotation)).encode(value) is None
