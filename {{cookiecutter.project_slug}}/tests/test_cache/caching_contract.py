"""The contract of `@cached` on every backend; the tests of each backend run it.

A subclass provides the fixture `backend`, which is empty at the start of each test.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from src.cache import Cache, CacheBackend, cached, invalidate, invalidate_cache, use_cache
from src.cache.backends.factory import create_backend
from src.cache.engine import cache as cache_module
from src.core.config import ROOT, load_settings
from tests.test_cache.contract import keys_of

TIMEOUT_SECONDS = 20  # less than WAIT_SECONDS, after which a caller stops waiting
Change = Callable[[CacheBackend], Awaitable[object]]
Read = Callable[[int], Coroutine[None, None, int]]
Start = Callable[[float], Awaitable[Process]]


class Source:
    """A slow data source: a read waits until `gate` is set."""

    def __init__(self) -> None:
        self.value = 1
        self.calls = 0
        self.gate = asyncio.Event()
        self.is_read = asyncio.Event()

    async def read(self) -> int:
        self.calls += 1
        value = self.value
        self.is_read.set()
        await self.gate.wait()
        return value

    def replace_value(self, value: int) -> asyncio.Event:
        """Return the new value to later reads without delay; return the gate of earlier reads."""
        old_gate, self.gate = self.gate, asyncio.Event()
        self.gate.set()
        self.value = value
        return old_gate


CHANGES: dict[str, Change] = {
    "key": lambda _: invalidate("source:1"),
    "pattern": lambda _: invalidate("source:*"),
    "tag": lambda _: invalidate(tags=["tagged:1"]),
    "other process": lambda backend: backend.delete("source:1"),
}


class CachingContract:
    @pytest.fixture(autouse=True)
    def cache(self, backend: CacheBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
        # No lease expires, even on a slow machine. If a lease is not released, the test times out.
        monkeypatch.setattr(cache_module, "LEASE_SECONDS", 60.0)
        with use_cache(Cache(backend, ttl=60)) as cache:
            yield cache

    @pytest.fixture
    async def source(self) -> Source:
        return Source()

    @pytest.fixture
    def read(self, source: Source) -> Read:
        @cached(key_prefix="source", tags=["tagged:{number}"])
        async def cached_read(number: int) -> int:
            return number * await source.read()

        async def read(number: int) -> int:
            return await cached_read(number)

        return read

    @pytest.mark.parametrize("value", [None, 0, "", False, [], {}], ids=repr)
    async def test_falsy_value_is_a_cache_hit(self, value: object) -> None:
        calls = 0

        @cached()
        async def find() -> object:
            nonlocal calls
            calls += 1
            return value

        assert [await find(), await find()] == [value, value]
        assert calls == 1

    async def test_exception_is_not_cached(self) -> None:
        calls = 0

        @cached()
        async def find() -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise ValueError("first")
            return calls

        with pytest.raises(ValueError, match="first"):
            await find()

        assert calls == 1
        assert await find() == 2

    async def test_concurrent_misses_compute_once(self, source: Source, read: Read) -> None:
        source.gate.set()

        assert await asyncio.gather(*(read(1) for _ in range(200))) == [1] * 200
        assert source.calls == 1

    @pytest.mark.parametrize("in_one_process", [True, False])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    async def test_value_computed_before_an_invalidation_is_not_stored_or_shared(
        self,
        backend: CacheBackend,
        source: Source,
        read: Read,
        change: Change,
        *,
        in_one_process: bool,
    ) -> None:
        """Callers after the invalidation do not wait for the outdated computation."""
        other_process = Cache(backend, ttl=60)
        outdated = [asyncio.create_task(read(1)) for _ in range(3)]
        await source.is_read.wait()
        old_gate = source.replace_value(2)

        await change(backend)

        with nullcontext() if in_one_process else use_cache(other_process):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                assert await asyncio.gather(*(read(1) for _ in range(50))) == [2] * 50
            old_gate.set()
            assert set(await asyncio.gather(*outdated)) <= {1, 2}
            assert await read(1) == 2
        assert source.calls == 2

    async def test_waiting_caller_computes_after_a_cancellation(
        self, source: Source, read: Read
    ) -> None:
        computing = asyncio.create_task(read(1))
        await source.is_read.wait()
        others = [asyncio.create_task(read(1)) for _ in range(10)]
        await asyncio.sleep(0.01)

        computing.cancel()
        source.gate.set()

        async with asyncio.timeout(TIMEOUT_SECONDS):  # the lease was released
            assert await asyncio.gather(*others) == [1] * 10
        assert source.calls == 2
        with pytest.raises(asyncio.CancelledError):
            await computing

    async def test_each_caller_gets_a_separate_object(self) -> None:
        @cached()
        async def find() -> list[int]:
            return [1]

        for found in await asyncio.gather(*(find() for _ in range(3))):
            found.append(2)

        assert await find() == [1]

    async def test_nested_calls_do_not_deadlock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A nested call stops waiting for a computation that waits too."""
        monkeypatch.setattr(cache_module, "NESTED_WAIT_SECONDS", 0.5)
        both_compute = asyncio.Barrier(2)

        @cached(key="{number}")
        async def find(number: int, *, is_nested: bool = False) -> int:
            if is_nested:
                return number
            await both_compute.wait()
            return await find(3 - number, is_nested=True)

        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert set(await asyncio.gather(find(1), find(2))) <= {1, 2}

    async def test_nested_calls_compute_a_slow_value_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_module, "NESTED_WAIT_SECONDS", 0.01)
        is_slow = asyncio.Event()
        calls = 0

        @cached()
        async def inner() -> int:
            nonlocal calls
            calls += 1
            await is_slow.wait()
            return calls

        @cached()
        async def outer(number: int) -> int:
            return number + await inner()

        readers = asyncio.gather(*(outer(number) for number in range(5)))
        await asyncio.sleep(0.2)  # many times NESTED_WAIT_SECONDS
        is_slow.set()

        assert (await readers, calls) == ([1, 2, 3, 4, 5], 1)

    async def test_stale_value_is_returned_while_it_is_refreshed(self, cache: Cache) -> None:
        calls = 0

        @cached(ttl=0.05, stale=60, jitter=0)
        async def count() -> int:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise ValueError("this is logged, and the next call tries again")
            return calls

        assert await count() == 1
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await count() < 3:  # noqa: ASYNC110 - each call may start a refresh
                await asyncio.sleep(0.01)
        await cache.aclose()

    async def test_failed_call_does_not_invalidate(self, source: Source, read: Read) -> None:
        @invalidate_cache("source:{number}")
        async def change(number: int) -> None:
            if number == 1:
                raise ValueError(number)

        source.gate.set()
        await read(1)
        with pytest.raises(ValueError, match="1"):
            await change(1)
        await read(1)

        assert source.calls == 1


class SharedCachingContract(CachingContract):
    """For backends that processes share; `variables` are the environment variables of a process."""

    @pytest.fixture
    async def start(self, variables: dict[str, str], tmp_path: Path) -> AsyncGenerator[Start]:
        processes: list[Process] = []

        async def start(seconds: float) -> Process:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.test_cache.reader", tmp_path / "calls", str(seconds)),
                cwd=ROOT,
                env=os.environ | variables,
                stdin=PIPE,
                stdout=PIPE,
            )
            processes.append(process)
            assert process.stdout
            assert await process.stdout.readline() == b"ready\n"
            return process

        yield start
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    @pytest.mark.parametrize(
        ("name", "value"), [("ENV", "test"), ("CACHE_NAMESPACE", "a"), ("CACHE_NAMESPACE", "lease")]
    )
    async def test_services_and_environments_share_nothing(
        self, env: pytest.MonkeyPatch, variables: dict[str, str], name: str, value: str
    ) -> None:
        """By default. To clear the cache of one does not affect the other."""
        for setting in variables.keys() - {"CACHE_NAMESPACE"}:
            env.setenv(setting, variables[setting])
        async with create_backend(load_settings()) as ours:
            env.setenv(name, value)
            async with create_backend(load_settings()) as theirs:
                await ours.flush()
                await ours.set("key", "ours", 60)
                assert await ours.acquire_lease("leased", "token", 60)
                assert await theirs.get("key") is None
                assert await keys_of(theirs) == []
                assert (await theirs.info())["entries"] == 0

                assert await theirs.delete("key", "leased") == 0
                await theirs.flush()

                assert await ours.get("key") == "ours"
                assert (await ours.info())["entries"] == 1
                assert await ours.set_if_leased("leased", "token", "value", 60)

    @pytest.mark.slow
    async def test_four_processes_compute_once(self, start: Start, tmp_path: Path) -> None:
        processes = await asyncio.gather(*(start(0.5) for _ in range(4)))

        outputs = await asyncio.gather(*(process.communicate(b"\n") for process in processes))

        assert [output for output, _ in outputs] == [b"2100\n"] * 4
        assert len((tmp_path / "calls").read_text().splitlines()) == 1

    @pytest.mark.slow
    async def test_other_process_computes_after_a_process_is_killed(
        self, start: Start, tmp_path: Path
    ) -> None:
        killed, other = await start(60), await start(0)
        assert killed.stdin
        killed.stdin.write(b"\n")
        calls = tmp_path / "calls"
        async with asyncio.timeout(60):
            while not (calls.exists() and calls.read_text()):  # noqa: ASYNC110 - another process writes
                await asyncio.sleep(0.01)

        killed.kill()

        async with asyncio.timeout(60):
            assert (await other.communicate(b"\n"))[0] == b"2100\n"
        assert len(calls.read_text().splitlines()) == 2
