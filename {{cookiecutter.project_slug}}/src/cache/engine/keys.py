"""Cache keys from the arguments of a call.

With the prefix `user`, `get_user(7)` and `get_user(user_id=7)` have the same key: `user:7`.
Text is percent-encoded except letters, digits and `._-@+/`. A value can therefore contain neither
the characters of a pattern nor the separators `:`, `,`, `=` and `~`.
If the type of a value is not the annotated type, the key contains the type: `user:str~7`. The keys
of 7 and "7" therefore differ. Keys are the same in every process.

The key of a method ends in a digest of its object: of the attributes, and of the class if it is a
subclass. Variables that a nested function captures are part of `identity_of` the function.
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from inspect import Parameter
from secrets import token_hex
from string import Formatter
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import BackgroundTasks, Response
from fastapi.security import SecurityScopes
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection

from src.cache.backends.base import CacheBackend
from src.db.session import Database

MAX_LENGTH = 200  # characters; a longer key is cut off and ends in a digest
GLOB = re.compile(r"[*?\[\\]")  # a key with one of these characters is a pattern

# Arguments of these types are not part of the key: the value does not depend on which one it is.
EXCLUDED_TYPES = (AsyncConnection, AsyncSession, CacheBackend, Database, Session)
# A value may depend on the contents of these, and they are not valid after the request.
REQUEST_TYPES = (BackgroundTasks, HTTPConnection, Response, SecurityScopes)
_SCALARS = (str, bool, int, float, Decimal, UUID, date, time, timedelta)
_CONTAINERS = (bytes, Enum, BaseModel, Mapping, AbstractSet, list, tuple)
_needs_no_quoting = re.compile(r"[\w.@+/-]*", re.ASCII).fullmatch


def format_key_part(value: object, declared: object = None) -> str:
    """Return the value as text, with the name of its type unless that is the declared type."""
    kind = type(value)
    text = format_value(value)
    if kind is declared or value is None or (declared is None and kind is str):
        return text
    return f"{kind.__name__}~{text}"


def format_value(value: object) -> str:
    """Return the value as text, without its type. Raises TypeError for unsupported types."""
    if type(value) is str:  # fast path: most arguments are strings
        return _quoted(value)
    if isinstance(value, Enum):
        return format_key_part(value.value)
    if isinstance(value, _SCALARS):
        return _quoted(str(value) + _zone_of(value))
    if isinstance(value, bytes):
        return value.hex()
    if value is None:
        return "~"
    parts = None if isinstance(value, REQUEST_TYPES) else _format_members(value)
    if parts is None:
        kind = type(value).__name__
        raise TypeError(
            f"A value of type `{kind}` cannot be part of a cache key. Pass `key=` to @cached, and"
            ' build the key from attributes of the value, for example `key="user:{user.id}"`.'
        )
    return "(" + "".join(f"{part}," for part in parts) + ")"


def _zone_of(value: object) -> str:
    """Return the name of a time zone: its offset depends on the date, and UTC has several types."""
    zone = value.tzinfo if isinstance(value, (datetime, time)) else None
    return f"@{zone}" if isinstance(zone, ZoneInfo) and zone.key != "UTC" else ""


def _format_members(value: Any) -> list[str] | None:
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, (BaseModel, Mapping)):
        pairs = dict(value).items()
        return sorted(f"{format_key_part(name)}={format_key_part(each)}" for name, each in pairs)
    if isinstance(value, AbstractSet):
        return sorted(map(format_key_part, value))
    return list(map(format_key_part, value)) if isinstance(value, (list, tuple)) else None


def _full_name(definition: Any) -> str:
    return f"{definition.__module__}.{definition.__qualname__}"


def _quoted(text: str) -> str:
    if (text.isascii() and text.isalnum()) or _needs_no_quoting(text):
        return text
    return quote(text, safe="@+/", errors="surrogatepass").replace("~", "%7E")


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the resolved annotations. Raises TypeError if one names something undefined."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"An annotation of `{function.__qualname__}` cannot be resolved: {error}. Define or"
            " import the name above the function, and not only under `if TYPE_CHECKING:`."
        ) from error


def identity_of(function: Callable[..., Any]) -> str:
    """Return a name of the function that no other function has.

    Nested functions, such as `make(1)` and `make(2)`, differ by the variables that they capture. If
    one is an object, the name differs in each process.
    """
    name = _full_name(function)
    if "<locals>" not in name:
        return name
    function = inspect.unwrap(function)
    parts = [str(function.__code__.co_firstlineno), *map(_captured, function.__closure__ or ())]
    return f"{name}~{digest(','.join(parts).encode())[:8]}"


def _captured(cell: Any) -> str:
    try:
        value = cell.cell_contents
    except ValueError:  # not assigned yet
        return ""
    if isinstance(value, EXCLUDED_TYPES):
        return ""
    is_plain = isinstance(value, (*_SCALARS, bytes, Enum, type(None)))
    return format_key_part(value) if is_plain else token_hex(8)


class Arguments:
    """The arguments of a function and their declared types."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__qualname__
        self.signature = inspect.signature(function)
        self.names = list(self.signature.parameters)
        kinds = {parameter.kind for parameter in self.signature.parameters.values()}
        self._may_be_positional = kinds <= {Parameter.POSITIONAL_OR_KEYWORD}
        hints = hints_of(function)
        self._callers = [name for name in self.names if _identifies_caller(hints.get(name))]
        declared = [
            (position, name, _base_type(hints.get(name)))
            for position, name in enumerate(self.names)
            if position or name not in {"self", "cls"}
        ]
        self.is_method = self.names[:1] in (["self"], ["cls"])
        self._class = f"{function.__module__}.{self.name.rpartition('.')[0]}"
        self.of_request = [
            name
            for _, name, kind in declared
            if kind and issubclass(kind, (*EXCLUDED_TYPES, *REQUEST_TYPES))
        ]
        self._in_key = [
            argument
            for argument in declared
            if not (argument[2] and issubclass(argument[2], EXCLUDED_TYPES))
        ]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the values of all arguments, including defaults, in the order of `names`."""
        if not kwargs and self._may_be_positional and len(args) == len(self.names):
            return args  # fast path: `signature.bind` takes longer than the rest of a cache hit
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def key(self, values: tuple[Any, ...]) -> str:
        """Return the part of the key that the arguments determine."""
        parts = []
        for position, _, kind in self._in_key:
            value = values[position]
            if type(value) is kind:
                parts.append(format_value(value))
            elif not isinstance(value, EXCLUDED_TYPES):
                parts.append(format_key_part(value, kind))
        return ":".join(parts)

    def owner(self, values: tuple[Any, ...]) -> str:
        """Return a digest of the object or class of a method; "" if it cannot change the value."""
        if not self.is_method:
            return ""
        owner = values[0]
        kind = owner if isinstance(owner, type) else type(owner)
        name = "" if _full_name(kind) == self._class else _full_name(kind)
        state = _state_of(owner)
        if not name and not state:
            return ""
        return f"~{digest((name + format_value(state)).encode())[:16]}"

    def check_callers(self, fields: AbstractSet[str]) -> None:
        """Raises TypeError if the fields of a template do not tell callers apart."""
        for name in self._callers:
            if name not in fields and not {f"{name}.kind", f"{name}.id"} <= fields:
                raise TypeError(
                    f"The `key` of `{self.name}` lacks `{name}`, but the value may depend on the"
                    " caller and its scopes. Add it in braces. If the value does not depend on the"
                    f" scopes, add `{name}.kind` and `{name}.id`."
                )

    def check(self) -> None:
        """Raises TypeError if the declared type of an argument cannot be part of a key."""
        for _, name, kind in self._in_key:
            # Values of an abstract type, such as Sequence, are checked when the function is called.
            if kind is None or inspect.isabstract(kind):
                continue
            is_valid = is_dataclass(kind) or issubclass(kind, (*_SCALARS, *_CONTAINERS, type(None)))
            if not is_valid or issubclass(kind, REQUEST_TYPES):
                raise TypeError(
                    f"The argument `{name}` of `{self.name}` cannot be part of a cache key, because"
                    f" its type is `{kind.__name__}`. Take what the value depends on as an argument"
                    ' instead, such as an id, or pass `key=` to @cached: `key="user:{user.id}"`.'
                )


def _state_of(owner: Any) -> dict[str, object]:
    """Return the attributes of an object, except sessions and the like."""
    if isinstance(owner, type):
        return {}
    if isinstance(owner, (*_SCALARS, *_CONTAINERS)):
        return {"": owner}
    state: Any = object.__getstate__(owner)  # a subclass may leave out attributes in its own
    own, slots = state if isinstance(state, tuple) else (state, None)
    attributes = {**(own or {}), **(slots or {})}
    return {
        name: value for name, value in attributes.items() if not isinstance(value, EXCLUDED_TYPES)
    }


def _identifies_caller(annotation: Any) -> bool:
    """Return whether a value may be a principal or contain one: `Principal | str`, for example."""
    annotation = getattr(annotation, "__supertype__", annotation)  # of a NewType
    if getattr(annotation, "identifies_caller", False):
        return True
    return any(map(_identifies_caller, get_args(annotation)))


def _base_type(annotation: Any) -> Any:
    """Return X for `Annotated[X | None, ...]`, and None for Any and for other unions."""
    annotation = getattr(annotation, "__supertype__", annotation)  # of a NewType
    origin = get_origin(annotation)
    if origin is Annotated:
        return _base_type(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _base_type(kinds[0]) if len(kinds) == 1 else None
    kind = origin or annotation
    return kind if isinstance(kind, type) and kind not in {object, Any} else None


_formatter = Formatter()


def parse_template(
    text: str, owner: str, kind: str, names: Collection[str]
) -> list[tuple[str, str | None]]:
    """Return pairs of literal text and placeholder. Raises TypeError if the template is invalid.

    `owner` is a function, a route or a model. Its `names` of this `kind` may be placeholders.
    """
    parsed = list(_formatter.parse(text))
    if any(spec or conversion for _, _, spec, conversion in parsed):
        raise TypeError(
            f"The template {text!r} of `{owner}` contains a format specification (`:`) or a"
            " conversion (`!`). Write only the name: `{user_id}` or `{user.id}`."
        )
    for _, field, _, _ in parsed:
        root = re.split(r"[.\[]", field or "", maxsplit=1)[0]
        name = root if kind == "argument" else field
        if field is not None and name not in names:
            placeholder = "{" + field + "}"
            raise TypeError(
                f"The template {text!r} contains `{placeholder}`, but `{owner}` has no such {kind}."
                f" It has: {', '.join(names) or 'none'}."
            )
    return [(literal, field) for literal, field, _, _ in parsed]


def check_strings(owner: str, **options: Sequence[str]) -> None:
    """Raises TypeError for `tags="users"`, which Python takes for a sequence of letters."""
    for name, value in options.items():
        if isinstance(value, str):
            raise TypeError(f"`{owner}`: `{name}` must be a list, for example {name}=[{value!r}].")


class Template:
    """A key or tag with placeholders for arguments: `user:{user_id}`, `{query.limit}`."""

    def __init__(self, text: str, arguments: Arguments) -> None:
        self._names = arguments.names
        self._parts = parse_template(text, arguments.name, "argument", self._names)
        self.fields = {field for _, field in self._parts if field is not None}
        is_constant = not self.fields
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
    """Return a pattern for the shortened form of the keys that `pattern` matches.

    If the first MAX_LENGTH characters contain no wildcard, it may match more keys than `pattern`.
    """
    wildcard = GLOB.search(pattern)
    if wildcard is None:
        return shorten(pattern)
    return pattern if wildcard.start() <= MAX_LENGTH else f"{pattern[:MAX_LENGTH]}~*"
