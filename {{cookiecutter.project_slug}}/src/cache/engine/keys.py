"""Keys from the arguments of a call: readable, the same however the arguments are given.

`get_user(7)` under the prefix `user` has the key `user:7`. Text is percent-encoded but for letters,
digits and `._-@+/`, so that neither a pattern's characters nor the separators `:`, `,`, `=`, `~`
can come from a value. A value whose type is not the annotated one carries its type (`str~7`), so
that 7 and "7" never share a key.
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

# What a call is made with, rather than about.
_TOOLS = (
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


# The first of a subclass's kinds decides: bool before int, datetime before date.
_TEXT: dict[type, Callable[[Any], str]] = {
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
_COMPOUND = (BaseModel, Mapping, AbstractSet, list, tuple)


def encode(value: object, declared: object = None) -> str:
    """Return the value's part of a key. Raises TypeError if its type makes no key."""
    kind = type(value)
    text = plain(value)
    if kind is declared or value is None or (declared is None and kind is str):
        return text
    return f"{kind.__name__}~{text}"


def plain(value: object) -> str:
    """Return the value's text without its type, as templates want it."""
    kind = type(value)
    if kind in _TEXT:
        return _TEXT[kind](value)
    if isinstance(value, Enum):
        return plain(value.value)
    for ancestor, text in _TEXT.items():
        if isinstance(value, ancestor):
            return text(value)
    return f"({_compound(value)})"


def _compound(value: object) -> str:
    if isinstance(value, BaseModel) or is_dataclass(value):
        return _pairs(fields_of(value))
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, AbstractSet):
        return _joined(sorted(map(encode, value)))
    if isinstance(value, (list, tuple)):
        return _joined(list(map(encode, value)))
    raise TypeError(f"an argument of type {type(value).__name__} makes no key; give `key=`")


def _joined(texts: list[str]) -> str:
    # One empty text is not the same as none at all.
    return "str~" if texts == [""] else ",".join(texts)


def _pairs(values: Mapping[Any, object]) -> str:
    return ",".join(sorted(f"{encode(name)}={encode(value)}" for name, value in values.items()))


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a Pydantic model or a dataclass."""
    if isinstance(value, BaseModel):
        return dict(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Raises TypeError if an annotation names what is not known yet."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{function.__qualname__}: {error}, as an annotation needs it") from error


class Arguments:
    """The arguments of a function: which of them make its key, and how."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__qualname__
        self.signature = inspect.signature(function)
        hints = hints_of(function)
        parameters = list(self.signature.parameters)
        if parameters[:1] in (["self"], ["cls"]):
            parameters.pop(0)
        self.annotated = {name: _bare(hints.get(name)) for name in parameters}
        self.declared = {name: kind for name, kind in self.annotated.items() if not is_tool(kind)}
        self._positions = self._flatten()

    def _flatten(self) -> list[tuple[int, Any, Callable[[Any], str]]]:
        """Return where what makes the key stands, if all arguments may be given by position.

        And the declared type, and what makes its text.
        """
        flat = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
        if any(parameter.kind not in flat for parameter in self.signature.parameters.values()):
            return []
        return [
            (at, kind := self.declared[name], _TEXT.get(kind, plain))
            for at, name in enumerate(self.signature.parameters)
            if name in self.declared
        ]

    def refuse_unfit(self) -> None:
        """Raises TypeError if an annotation promises what no key can be made of."""
        for name, kind in self.declared.items():
            if kind is not None and not _makes_key(kind):
                raise TypeError(
                    f"{self.name}: `{name}` ({kind.__name__}) makes no key; give `key=`"
                )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments by name, defaults included."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def segments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        # Binding costs more than all the rest of a hit; most calls can do without.
        if self._positions and not kwargs and len(args) == len(self.signature.parameters):
            return [
                text(value) if type(value) is declared else encode(value, declared)
                for at, declared, text in self._positions
                if type(value := args[at]) is declared or not isinstance(value, _TOOLS)
            ]
        values = self.bind(args, kwargs)
        return [
            encode(values[name], declared)
            for name, declared in self.declared.items()
            if not isinstance(values[name], _TOOLS)
        ]


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


def is_tool(kind: Any) -> bool:
    return kind is not None and issubclass(kind, _TOOLS)


def _makes_key(kind: type) -> bool:
    # An abstract type, such as Sequence, says nothing about the values that will come.
    fit = issubclass(kind, (*_TEXT, *_COMPOUND, Enum)) or is_dataclass(kind)
    return fit or inspect.isabstract(kind)


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
            literal + ("" if field is None else plain(_formatter.get_field(field, (), values)[0]))
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
        arguments = Arguments(function)
        arguments.refuse_unfit()
        head = f"{prefix or f'{function.__module__}.{function.__qualname__}'}:"
        return lambda args, kwargs: shorten(head + ":".join(arguments.segments(args, kwargs)))
    head = f"{prefix}:" if prefix else ""
    if callable(key):
        return lambda args, kwargs: shorten(f"{head}{key(*args, **kwargs)}")
    arguments = Arguments(function)
    template = Template(key, arguments)
    return lambda args, kwargs: shorten(head + template.fill(arguments.bind(args, kwargs)))
