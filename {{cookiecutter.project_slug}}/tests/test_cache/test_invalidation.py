"""Invalidation and transactions: uncommitted changes do not affect the cache."""

from collections.abc import Awaitable, Callable, Iterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from src.cache import Cache, MemoryBackend, cached, invalidate_cache, use_cache
from src.db.session import Database
from tests.fixtures.notes import Note


@pytest.fixture(autouse=True)
def cache() -> Iterator[Cache]:
    with use_cache(Cache(MemoryBackend(), ttl=60)) as cache:
        yield cache


class Store:
    value = 1
    calls = 0


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def read(store: Store) -> Callable[[], Awaitable[int]]:
    @cached(key="value", tags=["values"])
    async def read() -> int:
        store.calls += 1
        return store.value

    return read


@invalidate_cache("val*")
async def by_argument(session: AsyncSession) -> None:
    await session.connection()


@invalidate_cache(tags=["values"])
async def by_context(_session: object) -> None: ...


class Repository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    @invalidate_cache("value")
    async def change(self) -> None: ...


async def by_attribute(session: AsyncSession) -> None:
    await Repository(session).change()


@pytest.mark.parametrize("change", [by_argument, by_context, by_attribute])
async def test_invalidation_waits_for_the_commit(
    database: Database,
    read: Callable[[], Awaitable[int]],
    store: Store,
    change: Callable[[AsyncSession], Awaitable[None]],
) -> None:
    await read()
    async with database.transaction() as session:
        await change(session)
        store.value = 2
        assert await read() == 1
    assert await read() == 2


@pytest.mark.parametrize("in_a_block", [True, False])
async def test_function_that_commits_invalidates_immediately(
    committing_database: Database,
    read: Callable[[], Awaitable[int]],
    store: Store,
    *,
    in_a_block: bool,
) -> None:
    """Even if it reads after its commit, or if its caller has an open transaction."""

    @invalidate_cache("value")
    async def change(session: AsyncSession) -> None:
        if in_a_block:
            async with committing_database.transaction():
                store.value = 2
        else:
            await session.execute(text("SELECT 1"))
            store.value = 2
            await session.commit()
        await session.execute(text("SELECT 1"))

    await read()
    async with committing_database.writes() as session:
        await change(session)
        assert await read() == 2


@cached(key="texts", tags=["notes"])
async def texts(session: AsyncSession) -> list[str]:
    return list(await session.scalars(select(Note.text)))


async def test_uncommitted_changes_are_not_cached(
    committing_database: Database,
) -> None:
    async with committing_database.reads() as reads:
        async with committing_database.transaction() as session:
            assert await texts(reads) == []
            session.add(Note(text="one"))
            await session.flush()
            assert await texts(session) == ["one"]
        assert await texts(reads) == ["one"]


@pytest.mark.parametrize("pattern", ["text:{text}", "text:{text}*", "text:*"])
async def test_shortened_keys_are_invalidated(cache: Cache, pattern: str) -> None:
    store = Store()

    @cached(key="text:{text}")
    async def get(text: str) -> int:
        store.calls += 1
        return len(text)

    @invalidate_cache(pattern)
    async def change(text: str) -> None: ...

    long = "a" * 300
    await cache.backend.set(f"text:{long}", "set directly")
    await get(long)
    await change(long)
    await get(long)

    assert store.calls == 2
    assert await cache.backend.get(f"text:{long}") is None


async def test_invalidate_cache_refuses_invalid_use() -> None:
    with pytest.raises(TypeError, match="`key_pattern` or `tags`"):
        invalidate_cache()
    with pytest.raises(TypeError, match="async"):
        invalidate_cache("a")(lambda: None)  # type: ignore[arg-type, return-value]
