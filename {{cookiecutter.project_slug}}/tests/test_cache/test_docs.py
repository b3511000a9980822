"""The snippets of docs/caching.md run. What they leave to the reader is defined here."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from src.cache import Cache, MemoryBackend, current_cache, open_cache, use_cache
from src.core.config import get_settings
from src.db.session import Database
from tests.fixtures.client import connect, create_key
from tests.fixtures.notes import Note
from tests.fixtures.pages import python_blocks


class Snippets(NamedTuple):
    names: dict[str, Any]
    routers: list[Any]
    calls: list[str]  # to the functions that the snippets leave to the reader


@pytest.fixture
def snippets() -> Snippets:
    """Run every block in order, in one module."""
    calls: list[str] = []

    def recorded(name: str, result: Callable[..., object]) -> Callable[..., Awaitable[object]]:
        async def call(*args: Any) -> object:
            calls.append(" ".join([name, *map(str, args)]))
            return result(*args)

        return call

    async def insert_users(db: AsyncSession, names: list[str]) -> None:
        db.add_all([Note(text=name) for name in names])

    names: dict[str, Any] = {
        "__name__": "docs",
        "build_report": recorded("report", lambda _: "a,b\n"),
        "fetch_lamp": recorded("lamp", lambda _: {"name": "Green"}),
        "fetch_lamps_of": recorded("lamps", lambda caller: [f"{caller}'s"]),
        "fetch_user": recorded("fetch", lambda user_id: {"id": user_id, "name": "Ann"}),
        "insert_users": insert_users,
        "store_user": recorded("store", lambda *_: None),
    }
    routers = []
    for block in python_blocks("caching.md"):
        before = names.get("router")
        exec(block, names)  # noqa: S102 - our own page
        if names.get("router") is not before:
            routers.append(names["router"])
    return Snippets(names, routers, calls)


@pytest.fixture
def cache() -> Cache:
    return Cache(MemoryBackend(), ttl=60)


@pytest.fixture
async def snippets_client(
    snippets: Snippets, fresh_app: FastAPI, database: Database
) -> AsyncClient:
    """A client of an application that has the routers of the snippets too."""
    for router in snippets.routers:
        fresh_app.include_router(router)
    return connect(fresh_app, database)


async def test_cached_function(snippets: Snippets, cache: Cache) -> None:
    """It has the key that the page names; a key and a pattern invalidate it."""
    names, _, calls = snippets
    with use_cache(cache):
        for invalidate in (
            lambda: names["rename_user"]("7", "Bea"),
            lambda: cache.invalidate("user:*"),
        ):
            first = await names["get_user"]("7")
            assert await names["get_user"]("7") == first
            assert [key async for key in cache.backend.scan("user:*")] == ["user:7"]
            await invalidate()
            assert await cache.backend.get("user:7") is None
    assert calls == ["fetch 7", "store 7 Bea", "fetch 7"]


async def test_tag_is_invalidated_after_the_commit(
    snippets: Snippets, cache: Cache, database: Database
) -> None:
    names = snippets.names
    with use_cache(cache):
        await names["get_user"]("7")
        async with database.transaction() as db:
            await names["import_users"](db, ["Bea"])
            assert await cache.backend.get("tag:users") is not None
        assert await cache.backend.get("tag:users") is None


async def test_cached_responses(
    snippets: Snippets, snippets_client: AsyncClient, database: Database
) -> None:
    """One for everyone, or one for each principal."""
    ann, bob = [await create_key(database) for _ in range(2)]
    names = {key: key.split("_")[1] for key in (ann, bob)}
    async with snippets_client as client:
        lamps = [await client.get("/lamps/1") for _ in range(2)]
        known = {"If-None-Match": lamps[0].headers["etag"]}
        unchanged = await client.get("/lamps/1", headers=known)
        for key in (ann, bob, ann):
            mine = await client.get("/lamps/", headers={"X-API-Key": key})
            assert mine.json() == [f"{names[key]}'s"]
    assert lamps[0].json() == lamps[1].json() == {"name": "Green"}
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert snippets.calls == ["lamp 1", f"lamps {names[ann]}", f"lamps {names[bob]}"]


async def test_direct_access(snippets: Snippets, snippets_client: AsyncClient) -> None:
    async with snippets_client as client:
        reports = [(await client.get("/reports/2026-11-22")).json() for _ in range(2)]
    assert reports == ["a,b\n"] * 2
    assert snippets.calls == ["report 2026-11-22"]


async def test_script_opens_the_cache() -> None:
    async with open_cache(get_settings()):
        assert current_cache() is not None
