"""Keys from the arguments of a call: readable, the same however the arguments are given.

`get_user(7)` under the prefix `user` has the key `user:7`. Text is percent-encoded but for letters,
digits and `._-@+/`, so that neither a pattern's characters nor the separators `:`, `,`, `=`, `~`
can come from a value. A value whose type is not the annotated one carries its type (`str~7`), so
that 7 and "7" never share a key. Every process writes the same key for the same call.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from inspect import Parameter
from string import Formatter
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote
from uuid import UUID

from fastapi import BackgroundTasks, Response
from fastapi.security import SecurityScopes
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection

from src.cache.backends.base import CacheBackend
from src.db.session import Database

MAX_LENGTH = 200  # characters; a longer key ends in a digest instead
GLOB = re.compile(r"[*?\[\\]")  # what makes a key a pattern

# Arguments that never identify a call.
EXCLUDED_TYPES = (
    AsyncConnection,
    AsyncSession,
    BackgroundTasks,
    CacheBackend,
    Database,
    HTTPConnection,
    Response,
    SecurityScopes,
    Session,
)


def _quoted(text: str) -> str:
    if text.isascii() and text.isalnum():
        return text
    return quote(text, safe="@+/", errors="surrogatepass").replace("~", "%7E")


# The first of a subclass's types decides: bool before int, datetime before date.
_SCALARS: dict[type, Callable[[Any], str]] = {
    str: _quoted,
    bool: lambda value: "true" if value else "false",
    int: int.__repr__,
    float: float.__repr__,
    Decimal: str,
    UUID: str,
    bytes: bytes.hex,
    datetime: lambda value: _quoted(value.isoformat()),
    date: date.isoformat,
    time: lambda value: _quoted(value.isoformat()),
    timedelta: lambda value: _quoted(str(value)),
    type(None): lambda _: "~",
}
_CONTAINERS = (BaseModel, Mapping, AbstractSet, list, tuple)


def format_key_part(value: object, declared: object = None) -> str:
    """Return the value's part of a key, with its type unless that is the declared one."""
    kind = type(value)
    text = format_value(value)
    if kind is declared or value is None or (declared is None and kind is str):
        return text
    return f"{kind.__name__}~{text}"


def format_value(value: object) -> str:
    """Return the value's text without its type, as templates want it.

    Raises TypeError for what cannot identify a call.
    """
    kind = type(value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if isinstance(value, Enum):
        return format_value(value.value)
    for ancestor, text in _SCALARS.items():
        if isinstance(value, ancestor):
            return text(value)
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, (BaseModel, Mapping)):
        pairs = dict(value).items()
        parts = sorted(f"{format_key_part(name)}={format_key_part(each)}" for name, each in pairs)
    elif isinstance(value, AbstractSet):
        parts = sorted(map(format_key_part, value))
    elif isinstance(value, (list, tuple)):
        parts = list(map(format_key_part, value))
    else:
        raise TypeError(f"an argument of type {kind.__name__} makes no key; give `key=`")
    return "(" + "".join(f"{part}," for part in parts) + ")"


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Raises TypeError if an annotation names what is not known yet."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{function.__qualname__}: {error}, as an annotation needs it") from error


class Arguments:
    """The arguments of a function, and the types that they are declared with."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__qualname__
        self.signature = inspect.signature(function)
        hints = hints_of(function)
        names = list(self.signature.parameters)
        kinds = {parameter.kind for parameter in self.signature.parameters.values()}
        self._positional = names if kinds <= {Parameter.POSITIONAL_OR_KEYWORD} else []
        if names[:1] in (["self"], ["cls"]):
            names = names[1:]
        self.declared = {name: _bare(hints.get(name)) for name in names}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments by name, defaults included."""
        if not kwargs and len(args) == len(self._positional):
            return dict(zip(self._positional, args, strict=True))  # a tenth of the time
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def excluded(self) -> list[str]:
        """Return those whose type says that they never identify a call."""
        return [name for name, kind in self.declared.items() if kind and _is_excluded(kind)]


def _bare(annotation: Any) -> Any:
    """Reduce `Annotated[X | None, ...]` to X; a union of several types, and Any, to None."""
    annotation = getattr(annotation, "__supertype__", annotation)  # of a NewType
    origin = get_origin(annotation)
    if origin is Annotated:
        return _bare(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _bare(kinds[0]) if len(kinds) == 1 else None
    kind = origin or annotation
    return kind if isinstance(kind, type) and kind not in {object, Any} else None


def _is_excluded(kind: type) -> bool:
    return issubclass(kind, EXCLUDED_TYPES)


class Template:
    """A text with arguments in it: `item:{item_id}`, `{query.limit}`."""

    def __init__(self, text: str, arguments: Arguments) -> None:
        parsed = list(Formatter().parse(text))
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise TypeError(f"{text!r}: a template takes arguments as they are, without : and !")
        self._parts = [(literal, field) for literal, field, _, _ in parsed]
        known = arguments.signature.parameters
        for _, field in self._parts:
            if field is not None and _root(field) not in known:
                raise TypeError(f"{arguments.name} has no argument {field!r}, which {text!r} names")
        self.is_constant = all(field is None for _, field in self._parts)
        self.text = "".join(literal for literal, _ in self._parts)

    def fill(self, values: Mapping[str, Any]) -> str:
        if self.is_constant:
            return self.text
        return "".join(
            literal
            + ("" if field is None else format_value(_formatter.get_field(field, (), values)[0]))
            for literal, field in self._parts
        )


_formatter = Formatter()


def _root(field: str) -> str:
    return field.split(".", 1)[0].split("[", 1)[0]


def shorten(key: str) -> str:
    if len(key) <= MAX_LENGTH:
        return key
    return f"{key[:MAX_LENGTH]}~{digest(key.encode())}"


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def shorten_pattern(pattern: str) -> str:
    """Return what matches the keys that `pattern` would match if they had not been shortened.

    It may match more of them, and only knows of what the pattern says literally at its beginning.
    """
    wild = GLOB.search(pattern)
    if wild is None:
        return shorten(pattern)
    return pattern if wild.start() <= MAX_LENGTH else f"{pattern[:MAX_LENGTH]}~*"


KeyOf = Callable[[tuple[Any, ...], dict[str, Any]], str]


def key_maker(
    function: Callable[..., Any], prefix: str | None, key: str | Callable[..., str] | None
) -> KeyOf:
    """Return what makes the key of one call from its arguments.

    Raises TypeError if the arguments can make none.
    """
    if key is None:
        return _key_of_arguments(function, prefix)
    head = f"{prefix}:" if prefix else ""
    if callable(key):
        return lambda args, kwargs: shorten(f"{head}{key(*args, **kwargs)}")
    arguments = Arguments(function)
    template = Template(key, arguments)
    return lambda args, kwargs: shorten(head + template.fill(arguments.bind(args, kwargs)))


def _key_of_arguments(function: Callable[..., Any], prefix: str | None) -> KeyOf:
    arguments = Arguments(function)
    excluded = arguments.excluded()
    declared = [each for each in arguments.declared.items() if each[0] not in excluded]
    for name, kind in declared:
        # An abstract type, such as Sequence, says nothing about the values that will come.
        if kind and not (
            issubclass(kind, (*_SCALARS, *_CONTAINERS, Enum))
            or is_dataclass(kind)
            or inspect.isabstract(kind)
        ):
            raise TypeError(
                f"{arguments.name}: `{name}` ({kind.__name__}) makes no key; give `key=`"
            )
    head = f"{prefix or f'{function.__module__}.{function.__qualname__}'}:"

    def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        values = arguments.bind(args, kwargs)
        parts = []
        for name, kind in declared:
            value = values[name]
            if type(value) is kind or not isinstance(value, EXCLUDED_TYPES):
                parts.append(format_key_part(value, kind))
        return shorten(head + ":".join(parts))

    return key_of
