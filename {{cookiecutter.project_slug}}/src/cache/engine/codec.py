"""Values as bytes, by the return annotation of the function that makes them."""

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Generic, NewType, Protocol, TypeVar, get_origin

import structlog
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError

from src.cache.engine.keys import hints_of

log = structlog.get_logger(__name__)

T = TypeVar("T")

# For all but Pydantic models, which have a configuration of their own.
_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")


class Codec(Protocol[T]):
    def encode(self, value: T) -> bytes | None:
        """Return None for a value that is not to be stored."""

    def decode(self, data: bytes) -> T:
        """Raises ValueError for what `encode` did not make."""


class Bytes:
    def encode(self, value: bytes) -> bytes | None:
        return value if type(value) is bytes else None

    def decode(self, data: bytes) -> bytes:
        return data


class Json(Generic[T]):
    """JSON by Pydantic. Raises TypeError for a type that does not come back as it went in."""

    def __init__(self, annotation: Any, name: str) -> None:
        self.name = name
        self._warned = False
        try:
            # A new type, for dataclasses and the like take no configuration by themselves.
            adapter: TypeAdapter[T] = TypeAdapter(
                NewType("_", annotation),  # type: ignore[arg-type]
                config=_CONFIG,
            )
            adapter.json_schema(mode="serialization")
        except PydanticUserError as error:
            reason = str(error).splitlines()[0]
            raise TypeError(f"{name} returns what cannot be cached: {reason}") from error
        self._dump = adapter.dump_json
        self.decode: Callable[[bytes], T] = adapter.validate_json

    def encode(self, value: T) -> bytes | None:
        """Refuse, but for a warning, what would be another value or type on a hit than it is now.

        An annotation may promise less than the value is: a UUID in a `dict[str, Any]`, a subclass.
        """
        try:
            data = self._dump(value, warnings="error")
            if _is_same(self.decode(data), value):
                return data
            reason = "it would come back as another value or type; annotate it precisely"
        except (TypeError, ValueError) as error:
            reason = str(error)
        if not self._warned:
            self._warned = True
            log.warning("value_not_cached", function=self.name, reason=reason)
        return None


def _is_same(one: Any, other: Any) -> bool:
    """Tell apart what is equal and yet of another type: 1 and True, text and a member of StrEnum."""
    if type(one) is not type(other):
        # Where a float is wanted, an integer will do.
        return type(one) is float and type(other) is int and one == other
    mine, others = _members(one), _members(other)
    if mine is None or others is None:
        return bool(one == other)
    same_members = len(mine) == len(others) and all(map(_is_same, mine, others))
    return same_members and (not isinstance(one, BaseModel) or one == other)


def _members(value: Any) -> Sequence[Any] | None:
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, (BaseModel, dict)):
        members = dict(value)
        return [*members, *members.values()]
    return value if isinstance(value, (list, tuple)) else None


_ONE_WAY = (AsyncIterator, Iterator)


def codec_for(function: Callable[..., Any]) -> Codec[Any]:
    """Raises TypeError if what the function returns cannot be cached."""
    name = function.__qualname__
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} is no `async def` function")
    hints = hints_of(function)
    if "return" not in hints:
        raise TypeError(f"{name} needs a return annotation to be cached")
    annotation = hints["return"]
    kind = get_origin(annotation) or annotation
    if kind in {AsyncIterable, Iterable} or (isinstance(kind, type) and issubclass(kind, _ONE_WAY)):
        raise TypeError(f"{name} returns what can be read only once")
    return Bytes() if annotation is bytes else Json(annotation, name)
