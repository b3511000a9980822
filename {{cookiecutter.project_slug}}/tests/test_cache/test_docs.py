"""The examples of docs/caching.md are true. What they leave to the reader is defined here."""

import re
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import BaseModel
from sqlalchemy import select

from src.cache import Cache, MemoryBackend, use_cache
from src.core.config import ROOT
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import Note

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


class PriceQuery(BaseModel):
    product: str
    currency: str


class Examples(NamedTuple):
    names: dict[str, Any]
    routers: list[Any]
    calls: list[str]  # what the examples asked of the rest of the service


@pytest.fixture
def examples(documented_notes: None) -> Examples:  # noqa: ARG001 - examples import the notes
    """Run every block in order, in one module."""
    calls: list[str] = []

    def asked(name: str, answer: Callable[..., object]) -> Callable[..., Awaitable[object]]:
        async def ask(*args: Any) -> object:
            calls.append(" ".join([name, *map(str, args)]))
            return answer(*args)

        return ask

    names: dict[str, Any] = {
        "__name__": "docs",
        "PriceQuery": PriceQuery,
        "ask_for_price": asked("price", lambda _: 70),
        "ask_for_tax": asked("tax", lambda _: 0.19),
        "ask_the_forecast": asked("forecast", lambda _: "rain"),
        "build_report": asked("report", lambda _: "a,b\n"),
        "fetch_lamp": asked("lamp", lambda _: {"name": "Green"}),
        "fetch_profile": asked("profile", lambda who: {"name": who or "nobody"}),
        "fetch_user": asked("fetch", lambda user_id: names["User"](id=user_id, name="Ann")),
        "store_user": asked("store", lambda user_id, name: names["User"](id=user_id, name=name)),
        "user_of_token": lambda token: token and token.removeprefix("Bearer "),
    }
    routers = []
    for block in BLOCK.findall((ROOT / "docs" / "caching.md").read_text("utf-8")):
        before = names.get("router")
        exec(block, names)  # noqa: S102 - our own page
        if names.get("router") is not before:
            routers.append(names["router"])
    return Examples(names, routers, calls)


@pytest.fixture
def cache() -> Cache:
    return Cache(MemoryBackend(), ttl=60)


@pytest.fixture
async def visitor(examples: Examples, fresh_app: FastAPI, database: Database) -> AsyncClient:
    """A client of an application that has the routers of the examples too."""
    for router in examples.routers:
        fresh_app.include_router(router)
    return connect(fresh_app, database)


async def test_functions_and_invalidation(examples: Examples, cache: Cache) -> None:
    """Under the key that the page names; renaming and merging forget it, a pattern too."""
    names, _, calls = examples
    with use_cache(cache):
        for forget in (
            lambda: names["rename_user"]("7", "Bea"),
            lambda: names["merge_users"]("7", "8"),
            lambda: cache.invalidate("user:*"),
        ):
            first = await names["get_user"]("7")
            assert await names["get_user"]("7") == first
            assert [key async for key in cache.backend.scan("user:*")] == ["user:7"]
            await forget()
            assert await cache.backend.get("user:7") is None
    assert [call for call in calls if call.startswith("fetch")] == ["fetch 7"] * 3


async def test_direct_access(examples: Examples, visitor: AsyncClient) -> None:
    async with visitor:
        path = f"/reports/{date(2026, 11, 22)}"
        for _ in range(2):
            answer = await visitor.get(path)
            assert (answer.text, answer.headers["content-type"]) == (
                "a,b\n",
                "text/csv; charset=utf-8",
            )
    assert examples.calls == ["report 2026-11-22"]


async def test_cached_responses(examples: Examples, visitor: AsyncClient) -> None:
    """One for all, or one for each caller; none is cached for an unknown caller."""
    async with visitor:
        lamps = [await visitor.get("/lamps/1") for _ in range(2)]
        known = {"If-None-Match": lamps[0].headers["etag"]}
        unchanged = await visitor.get("/lamps/1", headers=known)
        for name in ("Ann", "Bob", "Ann"):
            me = await visitor.get("/me/", headers={"Authorization": f"Bearer {name}"})
            assert me.json() == {"name": name}
        for _ in range(2):
            assert (await visitor.get("/me/")).json() == {"name": "nobody"}
    assert lamps[0].json() == lamps[1].json() == {"name": "Green"}
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert examples.calls == ["lamp 1", "profile Ann", "profile Bob", *["profile None"] * 2]


async def test_keys(examples: Examples, cache: Cache) -> None:
    names = examples.names
    with use_cache(cache):
        query = PriceQuery(product="lamp", currency="EUR")
        assert (await names["get_price"](query), await names["get_tax"](query)) == (70, 0.19)
    assert sorted([key async for key in cache.backend.scan()]) == ["price:lamp:EUR", "tax:EUR"]


async def test_tags(examples: Examples, cache: Cache, database: Database) -> None:
    """A commit invalidates what the decorator names, what the model names and what a statement did."""
    names = examples.names
    count, keys = names["count_notes"], []
    with use_cache(cache):
        async with database.reads() as db:
            assert await count(db) == 0
        async with database.transaction() as db:
            await names["import_notes"](db, ["Lamp"])
        async with database.reads() as db:
            assert (await count(db), await count(db)) == (1, 1)
            keys = [key async for key in cache.backend.scan("tag:*")]
        async with database.transaction() as db:
            await names["replace_all"](db, "Table")
            assert await cache.backend.get("tag:notes") is not None
        assert await cache.backend.get("tag:notes") is None
        async with database.reads() as db:
            assert await db.scalar(select(Note.text)) == "Table"
    assert keys == ["tag:notes"]


async def test_background_refresh_and_scripts(examples: Examples, cache: Cache) -> None:
    names, _, calls = examples
    with use_cache(cache):
        assert [await names["get_weather"]("Bern") for _ in range(2)] == ["rain", "rain"]
    await names["forget_users"]()
    assert calls == ["forecast Bern"]


async def test_the_test(examples: Examples) -> None:
    names, _, calls = examples
    names["fetched"] = ["7"]
    await names["test_a_user_is_fetched_once"]()
    assert calls == ["fetch 7"]
