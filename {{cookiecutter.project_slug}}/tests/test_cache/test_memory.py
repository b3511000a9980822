import tracemalloc

import pytest

from src.cache.backends.memory import ENTRY_OVERHEAD_BYTES, MemoryBackend
from tests.test_cache.contract import BackendContract, keys_of, set_all


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


async def test_the_least_recently_used_makes_room() -> None:
    """A read and a write are a use."""
    backend = MemoryBackend(max_entries=3)
    await set_all(backend, ["a", "b", "c"])

    await backend.get("a")
    await backend.set("b", "2")
    await backend.set("d", "4")
    assert await keys_of(backend) == ["a", "b", "d"]

    await backend.get_many("a")
    await backend.set("e", "5")
    assert await keys_of(backend) == ["a", "d", "e"]


async def test_bytes_are_bounded() -> None:
    """The bytes never exceed the bound, whatever the sizes, and the newest value is there."""
    backend = MemoryBackend(max_bytes=100_000)
    for number in range(500):
        await backend.set(f"key{number}", b"x" * (number * 37 % 9000))
        assert (await backend.info())["bytes"] <= 100_000
        assert await backend.get(f"key{number}") is not None

    await backend.flush()
    assert (await backend.info())["bytes"] == 0


async def test_replaced_and_deleted_bytes_are_not_counted() -> None:
    backend = MemoryBackend()
    await backend.set("key", "x")
    small = (await backend.info())["bytes"]
    for value in ("x" * 1000, "x"):
        await backend.set("key", value)
    assert (await backend.info())["bytes"] == small

    await backend.delete("key")
    assert (await backend.info())["bytes"] == 0


async def test_a_value_bigger_than_the_bound_is_not_stored() -> None:
    """It drives out nothing else, and the value before it is gone."""
    backend = MemoryBackend(max_bytes=10_000)
    await set_all(backend, ["other", "key"])

    await backend.set("key", "x" * 10_000)

    assert await backend.get_many("key", "other") == [None, "value"]


async def test_a_value_is_there_until_its_deadline(clock: Clock) -> None:
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


async def test_a_key_set_again_takes_no_more_memory() -> None:
    backend = MemoryBackend(ttl=60)

    async def use(times: int) -> None:
        for _ in range(times):
            await backend.acquire_lease("key", "token", 60)
            await backend.set_if_leased("key", "token", "value")

    await use(1000)
    tracemalloc.start()
    try:
        await use(5_000)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert grown < 12_500


async def test_the_overhead_is_counted_within_a_third() -> None:
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


async def test_info_names_the_bounds() -> None:
    backend = MemoryBackend(max_entries=10, max_bytes=10_000)
    await backend.set("key", "value")

    info = await backend.info()

    assert (info["entries"], info["max_entries"], info["max_bytes"]) == (1, 10, 10_000)
    assert ENTRY_OVERHEAD_BYTES < info["bytes"] < 2 * ENTRY_OVERHEAD_BYTES
