"""`@cached` on the memory backend, and tests that do not depend on the backend."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Response
from sqlalchemy.ext.asyncio import AsyncSession

from src.cache import Cache, CacheBackend, MemoryBackend, cached, invalidate_cache, use_cache
from src.cache.engine import policy
from src.cache.engine.keys import identity_of
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


class Shop:
    __slots__ = ("__name", "session")

    def __init__(self, name: str) -> None:
        self.__name = name
        self.session = AsyncSession()  # is not in the key

    @cached(key_prefix="orders")
    async def orders(self, number: int) -> str:
        return f"{type(self).__name__} {self.__name} {number}"

    @classmethod
    @cached()
    async def kind(cls) -> str:
        return cls.__name__


class Bakery(Shop):
    __slots__ = ()


def scaled_by(factor: Any) -> Callable[[int], Awaitable[str]]:
    @cached(key_prefix="scaled")
    async def scale(number: int) -> str:
        return f"{factor} {number}"

    return scale


class Factor:
    pass


async def test_calls_of_different_objects_and_functions_do_not_share_a_value(
    backend: CacheBackend,
) -> None:
    """The class and the attributes of the object count, and variables that a function captures."""

    @cached(key_prefix="scaled")
    async def other(number: int) -> str:
        return f"other {number}"

    objects = [Factor(), Factor()]
    calls: dict[str, Callable[[], Awaitable[str]]] = {
        "Shop a 1": lambda: Shop("a").orders(1),
        "Shop b 1": lambda: Shop("b").orders(1),
        "Bakery a 1": lambda: Bakery("a").orders(number=1),
        "Shop": Shop.kind,
        "Bakery": Bakery.kind,
        "2 1": partial(scaled_by(2), 1),
        "True 1": partial(scaled_by(True), 1),
        "other 1": partial(other, 1),
        **{f"{factor} 1": partial(scaled_by(factor), 1) for factor in objects},
    }
    with use_cache(Cache(backend, ttl=60)):
        for _ in range(2):
            for expected, call in calls.items():
                assert await call() == expected
        assert await asyncio.gather(*(call() for call in calls.values())) == [*calls]


@pytest.mark.parametrize("pattern", ["orders:{number}", "orders:{number}*", "orders:*"])
async def test_key_of_a_method_without_the_object_invalidates_all_objects(
    backend: CacheBackend, pattern: str
) -> None:
    calls: list[str] = []

    class Store:
        def __init__(self, name: str) -> None:
            self.name = name

        @cached(key_prefix="orders")
        async def orders(self, number: int) -> None:
            calls.append(f"{self.name}{number}")

        @invalidate_cache(pattern)
        async def change(self, number: int) -> None: ...

    with use_cache(Cache(backend, ttl=60)):
        for _ in range(2):
            for name in "ab":
                await Store(name).orders(1)
        await Store("a").change(1)
        for name in "ab":
            await Store(name).orders(1)
    assert calls == ["a1", "b1"] * 2


def test_functions_from_a_factory_share_values_between_processes() -> None:
    """If they capture only plain values."""
    names = [identity_of(scaled_by(factor)) for factor in (2, 2, 3, "2", Factor)]
    assert names[0] == names[1]
    assert len({*names}) == 4
    assert identity_of(scaled_by).endswith(".scaled_by")


async def test_object_that_cannot_be_in_the_key_is_refused(backend: CacheBackend) -> None:
    shop = Repository()
    vars(shop)["client"] = object()
    with (
        use_cache(Cache(backend, ttl=60)),
        pytest.raises(TypeError, match="type `object` cannot be part of a cache key"),
    ):
        await shop.method(1)


async def listed() -> AsyncIterator[int]:
    yield 1


def test_decorator_refuses_what_it_cannot_identify() -> None:
    method = Repository().method
    functions: list[Any] = [partial(get_user, "1"), method, staticmethod(method), listed]
    for function in functions:
        with pytest.raises(TypeError, match="where it is declared"):
            cached()(function)
    for argument in (get_user, "users"):  # as in `@cached` and `@cached("users")`
        with pytest.raises(TypeError, match="`ttl` must be a number"):
            cached(argument)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'for example tags=\["users"\]|must be a list'):
        cached(tags="users")(get_user.__wrapped__)  # type: ignore[attr-defined]


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
    calls = 0

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    @cached(ttl=0.01, stale=60, jitter=0)
    async def count(self) -> int:
        WithSession.calls += 1
        return self.calls


async def test_call_with_a_session_is_not_refreshed_in_the_background(
    backend: CacheBackend,
) -> None:
    """The session would be closed before the refresh."""
    WithSession.calls = 0
    counter = WithSession(AsyncSession())
    with use_cache(Cache(backend, ttl=60)):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (found := await counter.count()) == 1:
                await asyncio.sleep(0.005)
                assert found == counter.calls


async def test_value_is_refreshed_when_the_clock_was_set_back(
    backend: CacheBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    @cached(ttl=60, stale=60)
    async def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    cache = Cache(backend, ttl=60)
    with use_cache(cache):
        assert await count() == 1
        monkeypatch.setattr(policy, "time", lambda: time.time() - 3600)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await count() == 1:  # noqa: ASYNC110 - each call may start a refresh
                await asyncio.sleep(0.005)
    await cache.aclose()
