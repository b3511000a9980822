"""Serialization of cached values, by the return annotation of the cached function."""

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

# For every type except Pydantic models, which have their own configuration.
_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")


class Codec(Protocol[T]):
    def encode(self, value: T) -> bytes | None:
        """Return None for a value that must not be stored."""

    def decode(self, data: bytes) -> T:
        """Raises ValueError for data that `encode` did not produce."""


class Bytes:
    def encode(self, value: bytes) -> bytes | None:
        return value if type(value) is bytes else None

    def decode(self, data: bytes) -> bytes:
        return data


class Json(Generic[T]):
    """JSON, written and read by Pydantic. Raises TypeError if Pydantic cannot serialize the type."""

    def __init__(self, annotation: Any, name: str) -> None:
        self.name = name
        self._warned = False
        try:
            # NewType, because TypeAdapter accepts no `config` for a dataclass or a TypedDict.
            adapter: TypeAdapter[T] = TypeAdapter(
                NewType("_", annotation),  # type: ignore[arg-type]
                config=_CONFIG,
            )
            adapter.json_schema(mode="serialization")
        except PydanticUserError as error:
            reason = str(error).splitlines()[0]
            raise TypeError(
                f"`{name}` cannot be cached, because Pydantic cannot serialize its return type."
                " Return a Pydantic model, a dataclass or built-in types instead."
                f" Pydantic says: {reason}"
            ) from error
        self._dump = adapter.dump_json
        self.decode: Callable[[bytes], T] = adapter.validate_json

    def encode(self, value: T) -> bytes | None:
        """Return None and log a warning if decoding would return a different value or type.

        This happens if the annotation is less precise than the value: for example, `dict[str, Any]`
        for a dictionary with a UUID, or a base class for an instance of a subclass.
        """
        try:
            data = self._dump(value, warnings="error")
            if _is_same(self.decode(data), value):
                return data
            reason = (
                "a cache hit would return a different value or type;"
                " make the return annotation more precise"
            )
        except (TypeError, ValueError) as error:
            reason = str(error)
        if not self._warned:
            self._warned = True
            log.warning("value_not_cached", function=self.name, reason=reason)
        return None


def _is_same(restored: Any, original: Any) -> bool:
    """Compare types too, because 1 == True, and a member of a StrEnum is equal to its text."""
    if type(restored) is not type(original):
        # An int is accepted for a `float` annotation, and is restored as a float.
        return type(restored) is float and type(original) is int and restored == original
    members, expected = _members(restored), _members(original)
    if members is None or expected is None:
        return bool(restored == original)
    same_members = len(members) == len(expected) and all(map(_is_same, members, expected))
    return same_members and (not isinstance(restored, BaseModel) or restored == original)


def _members(value: Any) -> Sequence[Any] | None:
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, (BaseModel, dict)):
        members = dict(value)
        return [*members, *members.values()]
    return value if isinstance(value, (list, tuple)) else None


_ITERATORS = (AsyncIterator, Iterator)


def check_function(function: Any, decorator: str) -> None:
    """Raises TypeError unless it is a function that is declared with `async def`."""
    # A partial or a bound method is no function: it has arguments already.
    if not (inspect.isfunction(function) and inspect.iscoroutinefunction(function)):
        raise TypeError(
            f"{decorator} cannot decorate `{getattr(function, '__qualname__', function)}`. Decorate"
            " a function or method where it is declared with `async def`, without `yield` and below"
            " @classmethod or @staticmethod."
        )


def codec_for(function: Callable[..., Any]) -> Codec[Any]:
    """Return the codec for the function's return type. Raises TypeError if there is none."""
    check_function(function, "@cached")
    name = function.__qualname__
    hints = hints_of(function)
    if "return" not in hints:
        raise TypeError(
            f"`{name}` needs a return annotation to be cached, for example `-> list[User]`:"
            " a cache hit returns a value of this type."
        )
    annotation = hints["return"]
    kind = get_origin(annotation) or annotation
    if kind in {AsyncIterable, Iterable} or (
        isinstance(kind, type) and issubclass(kind, _ITERATORS)
    ):
        raise TypeError(
            f"`{name}` cannot be cached: it returns an iterator, which can be read only once."
            " Return a list instead."
        )
    return Bytes() if annotation is bytes else Json(annotation, name)
