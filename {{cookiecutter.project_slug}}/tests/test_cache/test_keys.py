"""Cache keys are readable, unique, and independent of how a function is called."""

from collections.abc import Callable
from datetime import UTC, datetime, time
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, NewType, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from fastapi import Request, Response
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from src.cache.decorators import key_builder
from src.cache.engine.keys import MAX_LENGTH, Arguments
from src.domain.principal import Principal, PrincipalKind, Scope
from tests.fixtures.notes import Note

ID = UUID("018f0000-0000-7000-8000-000000000000")


class Size(StrEnum):
    BIG = "big"


class Query(BaseModel):
    limit: int = 10
    name: str | None = None


async def get_user(user_id: str) -> None: ...
async def any_of(value: Any) -> None: ...
async def untyped(db, value): ...  # type: ignore[no-untyped-def]
async def search(
    db: AsyncSession, query: Query, size: Size = Size.BIG, *, page: int = 1
) -> None: ...


def key_of(function: Any, *args: Any, **kwargs: Any) -> str:
    return key_with("user", None, function, *args, **kwargs)


def key_with(
    prefix: str | None,
    key: str | Callable[..., str] | None,
    function: Any,
    *args: Any,
    **kwargs: Any,
) -> str:
    arguments = Arguments(function)
    build = key_builder(function, arguments, prefix, key)
    return build(args, kwargs, arguments.bind(args, kwargs))


def test_keys_are_readable() -> None:
    assert key_of(get_user, "123") == "user:123"
    assert key_of(any_of, ID) == f"user:UUID~{ID}"
    assert key_of(untyped, AsyncSession(), "a") == "user:a"  # sessions are not in the key


def test_positional_and_keyword_arguments_have_the_same_key() -> None:
    session = AsyncSession()
    keys = {
        key_of(search, session, Query()),
        key_of(search, AsyncSession(), Query(limit=10), Size.BIG, page=1),
        key_of(search, query=Query(), db=None, page=1),
    }
    assert len(keys) == 1


@pytest.mark.parametrize("function", [get_user, any_of])
def test_values_of_different_types_have_different_keys(function: Any) -> None:
    values = [1, "1", True, 1.0, None, "None", "true", b"1", [1], (1,), {"1"}, "", "~", "int~1"]
    values += [[], [""], ["", ""], set(), {""}, {}, {"": ""}]
    assert len({key_of(function, value) for value in values}) == len(values)


@pytest.mark.parametrize("text", ["a:b", "*", "a b", "ä", "\0", "\n", "{x}", "[a]", "\ud800"])
def test_special_characters_are_encoded(text: str) -> None:
    key = key_of(get_user, text)
    assert key.isascii()
    assert not set(key.removeprefix("user:")) & set(":*?[]{}\\ \0\n")


def test_long_key_ends_in_a_digest() -> None:
    keys = [key_of(get_user, "a" * 5000 + end) for end in "bc"]
    assert keys[0] != keys[1]
    assert len(keys[0]) < MAX_LENGTH + 50


class Sort(Enum):
    ONE = 1
    TEXT_ONE = "1"


INSTANT = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = [None, *map(ZoneInfo, ("Europe/Berlin", "Africa/Lagos"))]  # one offset in January


@pytest.mark.parametrize(
    "values",
    [
        [Sort.ONE, Sort.TEXT_ONE, 1, "1"],
        [INSTANT, INSTANT.replace(tzinfo=None), INSTANT.replace(tzinfo=ZoneInfo("Asia/Tokyo"))],
        [*(time(12, tzinfo=zone) for zone in ZONES), *(INSTANT.replace(tzinfo=z) for z in ZONES)],
        [Decimal(1), Decimal("1.0"), 1, 1.0, float("nan"), Decimal("NaN")],
        [{1}, {"1"}, frozenset({1}), {True}],
    ],
    ids=["enum", "datetime", "zone", "number", "set"],
)
def test_similar_values_have_different_keys(values: list[Any]) -> None:
    assert len({key_of(any_of, value) for value in values}) == len(values)


async def uses_request(request: Request) -> None: ...
async def uses_response(response: Response) -> None: ...
async def uses_row(note: Note) -> None: ...


def test_argument_that_does_not_identify_the_call_is_refused() -> None:
    """Callers would share a value, or an effect would be lost on a hit."""
    for function in (uses_request, uses_response, uses_row):
        with pytest.raises(TypeError, match="Take what the value depends on as an argument"):
            key_of(function, None)
    for value in (Request({"type": "http"}), Note(text="a")):
        with pytest.raises(TypeError, match="Pass `key=` to @cached"):
            key_of(any_of, value)


def test_unsupported_types_and_unknown_placeholders_are_refused() -> None:
    async def find(value: slice) -> None: ...

    with pytest.raises(TypeError, match="value"):
        key_of(find, slice(1))
    for template in ("{typo}", "{}", "{0}"):
        with pytest.raises(TypeError, match="has no such argument"):
            key_with(None, template, get_user, "1")


async def list_notes(principal: Principal | None, page: int = 1) -> None: ...


def test_principals_have_different_keys() -> None:
    """So have the scopes of one principal, since a role may change."""
    scope = cast(Scope, "notes:read")  # a new service has none
    principals = [
        Principal(kind, name, scopes)
        for kind in (PrincipalKind.API_KEY, PrincipalKind.DEVELOPER)
        for name in ("a", "b", "a,kind=developer")
        for scopes in (frozenset[Scope](), frozenset({scope}))
    ]

    for key in (None, "notes:{principal}"):
        keys = {key_with("notes", key, list_notes, each) for each in (*principals, None)}
        assert len(keys) == len(principals) + 1
    same = Principal(PrincipalKind.API_KEY, "a", frozenset())
    assert key_of(list_notes, same) == key_of(list_notes, principals[0])


@pytest.mark.parametrize("key", ["notes", "notes:{page}", "{principal.id}", "{principal.scopes}"])
def test_template_without_the_principal_is_refused(key: str) -> None:
    with pytest.raises(TypeError, match="lacks `principal`, but the value may depend"):
        key_with(None, key, list_notes, None)


@pytest.mark.parametrize(
    "annotation",
    [Principal | str, list[Principal], Annotated[Principal, ""], NewType("P", Principal)],
)
def test_other_types_that_contain_the_principal_are_refused(annotation: Any) -> None:
    async def notes(principal: annotation) -> None: ...

    with pytest.raises(TypeError, match="lacks `principal`, but the value may depend"):
        key_with(None, "notes", notes, None)


def test_template_may_leave_out_the_scopes() -> None:
    principal = Principal(PrincipalKind.API_KEY, "a", frozenset())
    key = "notes:{principal.kind}:{principal.id}:{page}"

    assert key_with(None, key, list_notes, principal) == "notes:api-key:a:1"
