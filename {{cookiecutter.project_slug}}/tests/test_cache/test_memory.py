import json
import tracemalloc

import pytest

from src.cache.backends.memory import ENTRY_OVERHEAD_BYTES, MemoryBackend
from tests.test_cache.contract import BackendContract, keys_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestContract(BackendContract):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()

    @pytest.fixture
    def neighbour(self) -> MemoryBackend:
        return MemoryBackend()


async def test_least_recently_used_goes_first() -> None:
    """A read and a write are a use; what was used the longest time ago makes room."""
    backend = MemoryBackend(max_entries=3)
    await backend.set_many({"a": "1", "b": "2", "c": "3"})

    await backend.get("a")
    await backend.set("b", "2")
    await backend.set("d", "4")
    assert await keys_of(backend) == ["a", "b", "d"]

    await backend.get_many("a")
    await backend.set("e", "5")
    assert await keys_of(backend) == ["a", "d", "e"]


async def test_expired_go_before_live_ones(clock: Clock) -> None:
    """An expired value makes room even if it was used last."""
    backend = MemoryBackend(max_entries=3, clock=clock)
    await backend.set_many({"a": "1", "b": "2"})
    await backend.set("c", "3", ex=10)

    clock.now += 10
    await backend.set("d", "4")

    assert await keys_of(backend) == ["a", "b", "d"]


async def test_bytes_are_bounded() -> None:
    """The bytes never exceed the bound, whatever the sizes, and the newest value is there."""
    backend = MemoryBackend(max_bytes=100_000)
    for number in range(500):
        await backend.set(f"key{number}", b"x" * (number * 37 % 9000))
        assert (await backend.info())["bytes"] <= 100_000
        assert await backend.get(f"key{number}") is not None

    await backend.flush()
    assert (await backend.info())["bytes"] == 0


async def test_bytes_are_given_back() -> None:
    """Replaced, deleted and expired values are no longer counted."""
    backend = MemoryBackend()
    await backend.set("key", "x" * 1000)
    await backend.set("key", "x")
    small = (await backend.info())["bytes"]
    await backend.set("key", "x" * 1000)
    await backend.set("key", "x")
    assert (await backend.info())["bytes"] == small

    await backend.delete("key")
    assert (await backend.info())["bytes"] == 0


async def test_value_bigger_than_the_bound() -> None:
    """It is not kept, it drives out nothing else, and the value before it is gone."""
    backend = MemoryBackend(max_bytes=10_000)
    await backend.set_many({"other": "value", "key": "old"})

    await backend.set("key", "x" * 10_000)

    assert await backend.get("key") is None
    assert await backend.get("other") == "value"


async def test_deadline(clock: Clock) -> None:
    """A value is there until its time is over, and not a moment longer."""
    backend = MemoryBackend(ttl=60, clock=clock)
    await backend.set("default", "value")
    await backend.set("short", "value", ex=0.5)

    clock.now += 0.25
    assert await backend.get("short") == "value"
    clock.now += 0.25
    assert await backend.get("short") is None
    clock.now += 59
    assert await keys_of(backend) == ["default"]
    clock.now += 0.5
    assert await keys_of(backend) == []
    assert await backend.delete("default") == 0


async def test_writes_drop_what_expired(clock: Clock) -> None:
    """Expired values that nobody reads again are dropped as others are written."""
    backend = MemoryBackend(clock=clock)
    for number in range(1000):
        await backend.set(f"old{number}", "value", ex=1)

    clock.now += 1
    for number in range(500):
        await backend.set(f"new{number}", "value", ex=1)

    assert (await backend.info())["entries"] == 500


async def test_memory_does_not_grow_with_writes() -> None:
    """The same key set again and again takes no more memory, and neither do leases."""
    backend = MemoryBackend(ttl=60)

    async def use(times: int) -> None:
        for number in range(times):
            await backend.set("key", "value")
            await backend.lease(f"key{number}", "token", 1e-9)

    await use(1000)
    tracemalloc.start()
    try:
        await use(5_000)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert grown < 12_500


async def test_overhead_is_about_right() -> None:
    """The bytes that are counted are those that it takes, within a third."""
    keys = [f"key:{number}" for number in range(10_000)]
    backend = MemoryBackend(ttl=60)
    tracemalloc.start()
    try:
        for key in keys:
            await backend.set(key, "")
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken / len(keys) == pytest.approx(ENTRY_OVERHEAD_BYTES, rel=1 / 3)


async def test_leases_expire(clock: Clock) -> None:
    """A lease ends on time, and a renewed one on its new time."""
    backend = MemoryBackend(clock=clock)
    await backend.lease("a", "token", 10)
    await backend.lease("b", "token", 10)
    assert await backend.renew("b", "token", 30)

    clock.now += 10
    assert not await backend.fulfil("a", "token", "value")
    assert await backend.fulfil("b", "token", "value")


async def test_live_leases_are_kept(clock: Clock) -> None:
    """However many leases there are, none that is held is dropped."""
    backend = MemoryBackend(clock=clock)
    for number in range(1000):
        await backend.lease(f"key{number}", "token", 10)

    assert not await backend.lease("key0", "other", 10)
    assert all([await backend.fulfil(f"key{n}", "token", "value") for n in range(1000)])


async def test_info() -> None:
    """The bounds are told as well as what is used of them."""
    backend = MemoryBackend(max_entries=10, max_bytes=10_000)
    await backend.set("key", "value")

    info = await backend.info()

    assert json.loads(json.dumps(info)) == info
    assert (info["entries"], info["max_entries"], info["max_bytes"]) == (1, 10, 10_000)
    assert ENTRY_OVERHEAD_BYTES < info["bytes"] < 2 * ENTRY_OVERHEAD_BYTES
