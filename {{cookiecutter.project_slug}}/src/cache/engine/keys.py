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
from datetime import date, time, timedelta
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
_SCALARS = (str, bool, int, float, Decimal, UUID, date, time, timedelta)
_CONTAINERS = (bytes, Enum, BaseModel, Mapping, AbstractSet, list, tuple)
_is_plain = re.compile(r"[\w.@+/-]*", re.ASCII).fullmatch


def format_key_part(value: object, declared: object = None) -> str:
    """Return the value's part of a key, with its type unless that is the declared one."""
    kind = type(value)
    text = format_value(value)
    if kind is declared or value is None or (declared is None and kind is str):
        return text
    return f"{kind.__name__}~{text}"


def format_value(value: object) -> str:
    """Return the value's text without its type. Raises TypeError for what identifies no call."""
    if type(value) is str:  # the fastest, for it is the commonest
        return _quoted(value)
    if isinstance(value, Enum):
        return format_value(value.value)
    if isinstance(value, _SCALARS):
        return _quoted(str(value))
    if isinstance(value, bytes):
        return value.hex()
    if value is None:
        return "~"
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
        kind = type(value).__name__
        raise TypeError(f"an argument of type {kind} makes no key; give `key=`")
    return "(" + "".join(f"{part}," for part in parts) + ")"


def _quoted(text: str) -> str:
    if (text.isascii() and text.isalnum()) or _is_plain(text):
        return text
    return quote(text, safe="@+/", errors="surrogatepass").replace("~", "%7E")


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
        self.names = list(self.signature.parameters)
        kinds = {parameter.kind for parameter in self.signature.parameters.values()}
        self._may_be_positional = kinds <= {Parameter.POSITIONAL_OR_KEYWORD}
        hints = hints_of(function)
        declared = [
            (position, name, _bare(hints.get(name)))
            for position, name in enumerate(self.names)
            if position or name not in {"self", "cls"}
        ]
        self.excluded = [
            name for _, name, kind in declared if kind and issubclass(kind, EXCLUDED_TYPES)
        ]
        self._declared = [each for each in declared if each[1] not in self.excluded]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return all arguments in the order of their names, defaults included."""
        if not kwargs and self._may_be_positional and len(args) == len(self.names):
            return args  # to bind takes longer than all the rest of a hit
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def key(self, values: tuple[Any, ...]) -> str:
        """Return the part of a key that says what the function was called with."""
        parts = []
        for position, _, kind in self._declared:
            value = values[position]
            if type(value) is kind:
                parts.append(format_value(value))
            elif not isinstance(value, EXCLUDED_TYPES):
                parts.append(format_key_part(value, kind))
        return ":".join(parts)

    def check(self) -> None:
        """Raises TypeError if an annotation promises what makes no key."""
        for _, name, kind in self._declared:
            # An abstract type, such as Sequence, says nothing about the values that will come.
            if kind is None or is_dataclass(kind) or inspect.isabstract(kind):
                continue
            if not issubclass(kind, (*_SCALARS, *_CONTAINERS, type(None))):
                raise TypeError(
                    f"{self.name}: `{name}` ({kind.__name__}) makes no key; give `key=`"
                )


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


_formatter = Formatter()


class Template:
    """A text with arguments in it: `user:{user_id}`, `{query.limit}`."""

    def __init__(self, text: str, arguments: Arguments) -> None:
        parsed = list(_formatter.parse(text))
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise TypeError(f"{text!r}: a template takes arguments as they are, without : and !")
        self._parts = [(literal, field) for literal, field, _, _ in parsed]
        self._names = arguments.names
        for _, field in self._parts:
            root = re.split(r"[.\[]", field or "", maxsplit=1)[0]
            if field is not None and root not in self._names:
                raise TypeError(f"{arguments.name} has no argument {field!r}, which {text!r} names")
        is_constant = all(field is None for _, field in self._parts)
        self._constant = "".join(literal for literal, _ in self._parts) if is_constant else None

    def fill(self, values: tuple[Any, ...]) -> str:
        if self._constant is not None:
            return self._constant
        named = dict(zip(self._names, values, strict=True))
        return "".join(
            literal
            + ("" if field is None else format_value(_formatter.get_field(field, (), named)[0]))
            for literal, field in self._parts
        )


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
