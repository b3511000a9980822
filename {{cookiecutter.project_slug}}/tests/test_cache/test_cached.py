"""`@cached` on the memory backend, and tests that do not depend on the backend."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Response
from sqlalchemy.ext.asyncio import AsyncSession

from src.cache import Cache, CacheBackend, MemoryBackend, cached, use_cache
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import Note
from tests.test_cache.caching_contract import TIMEOUT_SECONDS, CachingContract


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


class TestContract(CachingContract):
    pass


@cached(ttl=300, key_prefix="user")
async def get_user(user_id: str, *, details: bool = False) -> dict[str, Any]:
    """Find a user."""
    return {"id": user_id, "details": details}


UNCACHEABLE_TYPES = [
    Note,
    list[Note],
    Response,
    AsyncIterator[int],
    Iterable[int],
    Callable[[], int],
]


@pytest.mark.parametrize("annotation", UNCACHEABLE_TYPES, ids=str)
def test_decorator_refuses_a_return_type_that_cannot_be_cached(annotation: Any) -> None:
    async def find() -> Any: ...

    find.__annotations__["return"] = annotation
    with pytest.raises(TypeError, match="find` cannot be cached"):
        cached()(find)


def test_decorator_refuses_a_function_without_annotation_or_async() -> None:
    async def find(): ...  # type: ignore[no-untyped-def]

    with pytest.raises(TypeError, match="needs a return annotation"):
        cached()(find)
    with pytest.raises(TypeError, match="with `async def`"):
        cached()(lambda: None)  # type: ignore[arg-type, return-value]


async def test_cached_function_can_be_a_dependency(fresh_app: FastAPI, database: Database) -> None:
    @fresh_app.get("/users/{user_id}")
    async def show(user: Annotated[dict[str, Any], Depends(get_user)]) -> dict[str, Any]:
        return user

    client = connect(fresh_app, database)
    for _ in range(2):
        found = await client.get("/users/7?details=true")
        assert found.json() == {"id": "7", "details": True}
    assert await get_user("1") == {"id": "1", "details": False}  # without a cache


class Repository:
    calls = 0

    @cached()
    async def method(self, number: int) -> int:
        Repository.calls += 1
        return number

    @classmethod
    @cached()
    async def of_class(cls, number: int) -> int:
        cls.calls += 1
        return number


@pytest.mark.parametrize("name", ["method", "of_class"])
async def test_methods_are_cached(backend: CacheBackend, name: str) -> None:
    Repository.calls = 0
    with use_cache(Cache(backend, ttl=60)):
        assert await getattr(Repository(), name)(1) == 1
        assert await getattr(Repository(), name)(number=1) == 1
    assert Repository.calls == 1


async def test_value_that_does_not_match_the_annotation_is_not_shared(
    backend: CacheBackend,
) -> None:
    calls = 0

    @cached()
    async def find() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return {"a": (1, 2)}

    with use_cache(Cache(backend, ttl=60)):
        assert await asyncio.gather(*(find() for _ in range(3))) == [{"a": (1, 2)}] * 3
    assert calls == 3


class WithSession:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.calls = 0

    @cached(ttl=0.01, stale=60, jitter=0)
    async def count(self) -> int:
        self.calls += 1
        return self.calls


async def test_call_with_a_session_is_not_refreshed_in_the_background(
    backend: CacheBackend,
) -> None:
    """The session would be closed before the refresh."""
    counter = WithSession(AsyncSession())
    with use_cache(Cache(backend, ttl=60)):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (found := await counter.count()) == 1:
                await asyncio.sleep(0.005)
                assert found == counter.calls
