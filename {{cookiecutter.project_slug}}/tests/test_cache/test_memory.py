import tracemalloc
from collections.abc import Awaitable

import pytest

from src.cache.backends.memory import ENTRY_OVERHEAD_BYTES, MemoryBackend
from tests.test_cache.contract import BackendContract, keys_of, set_all


class TestContract(BackendContract):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()

    @pytest.fixture
    def other_namespace(self) -> MemoryBackend:
        return MemoryBackend()


async def test_least_recently_used_entry_is_evicted() -> None:
    """A read and a write both count as use."""
    backend = MemoryBackend(max_entries=3)
    await set_all(backend, ["a", "b", "c"])

    await backend.get("a")
    await backend.set("b", "2")
    await backend.set("d", "4")
    assert await keys_of(backend) == ["a", "b", "d"]

    await backend.get_many("a")
    await backend.set("e", "5")
    assert await keys_of(backend) == ["a", "d", "e"]


async def test_size_is_limited() -> None:
    """The newest value is always stored."""
    backend = MemoryBackend(max_bytes=100_000)
    for number in range(500):
        await backend.set(f"key{number}", b"x" * (number * 37 % 9000))
        assert (await backend.info())["bytes"] <= 100_000
        assert await backend.get(f"key{number}") is not None

    await backend.flush()
    assert (await backend.info())["bytes"] == 0


async def test_value_larger_than_the_limit_is_not_stored() -> None:
    """It evicts no other value. The old value of the key is deleted."""
    backend = MemoryBackend(max_bytes=10_000)
    await set_all(backend, ["other", "key"])

    await backend.set("key", "x" * 10_000)

    assert await backend.get_many("key", "other") == [None, "value"]


async def measure_bytes(work: Awaitable[object]) -> int:
    tracemalloc.start()
    try:
        await work
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


async def test_setting_a_key_again_uses_no_more_memory() -> None:
    backend = MemoryBackend(ttl=60)

    async def use(times: int) -> None:
        for _ in range(times):
            await backend.acquire_lease("key", "token", 60)
            await backend.set_if_leased("key", "token", "value")

    await use(1000)
    assert await measure_bytes(use(5_000)) < 12_500


async def test_estimated_overhead_is_accurate_within_a_third() -> None:
    keys = [f"key:{number}" for number in range(10_000)]
    backend = MemoryBackend(ttl=60)

    async def fill() -> None:
        for key in keys:
            await backend.set(key, "")

    used = await measure_bytes(fill())

    assert used / len(keys) == pytest.approx(ENTRY_OVERHEAD_BYTES, rel=1 / 3)
