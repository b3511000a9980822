"""The circuit breaker, around a backend that fails on demand."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.testing import LogCapture

from src.cache import Cache, cached, use_cache
from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError
from src.cache.backends.memory import MemoryBackend
from src.cache.engine import circuit_breaker
from src.cache.engine.cache import WAIT_SECONDS
from src.cache.engine.circuit_breaker import CircuitBreakerBackend as Breaker
from tests.test_cache.contract import TIMEOUT_SECONDS, keys_of, until

UNAVAILABLE = CacheUnavailableError("connection refused")
READ_ONLY = CacheError("read-only replica")
Logs = list[MutableMapping[str, Any]]
Call = Callable[[CacheBackend], Awaitable[object]]
Wait = Callable[[], Awaitable[None]]
# Each operation, and what it returns while the circuit is open.
NON_DELETIONS: dict[str, tuple[Call, object]] = {
    "get": (lambda backend: backend.get("key"), None),
    "get_many": (lambda backend: backend.get_many("key", "unknown"), [None, None]),
    "set": (lambda backend: backend.set("key", "new", 7), None),
    "add": (lambda backend: backend.add("key", "new", 7), True),
    "scan": (keys_of, []),
    "acquire_lease": (lambda backend: backend.acquire_lease("key", "token", 7), True),
    "renew_lease": (lambda backend: backend.renew_lease("leased", "token", 7), False),
    "set_if_leased": (lambda backend: backend.set_if_leased("leased", "token", "new", 7), False),
    "release_lease": (lambda backend: backend.release_lease("leased", "token"), None),
    "info": (lambda backend: backend.info(), {}),
}
DELETIONS: dict[str, tuple[Call, object]] = {
    "delete": (lambda backend: backend.delete("key"), 0),
    "delete_matching": (lambda backend: backend.delete_matching("k*"), 0),
    "flush": (lambda backend: backend.flush(), None),
}
CALLS = NON_DELETIONS | DELETIONS


class FaultyBackend(MemoryBackend):
    """A memory backend whose operations can wait for a gate, and can fail."""

    name = "faulty"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.outage: CacheUnavailableError | None = None
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.slow: dict[str, Wait] = {}
        for operation in (*(NON_DELETIONS.keys() - {"scan"}), *DELETIONS, "ping"):
            setattr(self, operation, self._faulty(operation))

    def _faulty(self, operation: str) -> Callable[..., Awaitable[object]]:
        original = getattr(super(), operation)

        async def call(*args: object) -> object:
            await self._wait_or_fail(operation, *args)
            return await original(*args)

        call.__name__ = operation
        return call

    async def _wait_or_fail(self, operation: str, *args: object) -> None:
        self.calls.append((operation, *args))
        if gate := self.gates.get(operation):
            await gate.wait()
        if wait := self.slow.get(operation):
            await wait()
        if error := self.errors.get(operation, self.outage):
            raise error

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        await self._wait_or_fail("scan", pattern)
        async for key in super().scan(pattern):
            yield key

    async def aclose(self) -> None:
        await self._wait_or_fail("aclose")

    def called(self, operation: str) -> int:
        return sum(name == operation for name, *_ in self.calls)

    @property
    def requests(self) -> list[str]:
        return [name for name, *_ in self.calls if name != "ping"]


def other_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"backend": "faulty", **labels}) or 0


async def make_inner() -> FaultyBackend:
    inner = FaultyBackend()
    await inner.set("key", "old")
    await inner.set("other", "old")
    await inner.acquire_lease("leased", "token", 60)
    inner.calls.clear()
    return inner


@pytest.fixture
async def inner() -> FaultyBackend:
    return await make_inner()


@pytest.fixture
async def backend(inner: FaultyBackend) -> AsyncGenerator[Breaker]:
    before = other_tasks()
    async with Breaker(inner, retry_seconds=0.01) as backend:
        yield backend
        inner.outage = None
        inner.errors.clear()
        inner.gates.clear()
        inner.slow.clear()
    assert other_tasks() <= before


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Logs:
    """The log entries of the circuit breaker, for any logging configuration."""
    capture = LogCapture()
    log = structlog.wrap_logger(None, [capture], wrapper_class=structlog.stdlib.BoundLogger)
    monkeypatch.setattr(circuit_breaker, "log", log)
    return capture.entries


async def fail(backend: Breaker, inner: FaultyBackend) -> None:
    inner.outage = UNAVAILABLE
    await backend.get("key")
    assert not backend.available
    inner.calls.clear()


async def recover(backend: Breaker, inner: FaultyBackend) -> None:
    inner.outage = None
    await until(lambda: backend.available)


@pytest.mark.parametrize("operation", CALLS)
async def test_closed_circuit_passes_calls_through(
    operation: str, backend: Breaker, inner: FaultyBackend
) -> None:
    call, _ = CALLS[operation]
    direct = await make_inner()

    assert await call(backend) == await call(direct)

    assert inner.calls == direct.calls


@pytest.mark.parametrize("operation", CALLS)
async def test_outage_opens_the_circuit(
    operation: str, backend: Breaker, inner: FaultyBackend
) -> None:
    """The failed call and the next call return what an empty cache returns."""
    call, default = CALLS[operation]
    inner.outage = UNAVAILABLE

    assert await call(backend) == default
    assert not backend.available
    assert await call(backend) == default

    assert inner.requests == [operation]


@pytest.fixture
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_breaker, "SLOW_SECONDS", 0.01)


async def slow() -> None:
    await asyncio.sleep(10 * circuit_breaker.SLOW_SECONDS)


async def fast() -> None:
    pass


async def busy() -> None:
    time.sleep(10 * circuit_breaker.SLOW_SECONDS)  # noqa: ASYNC251 - blocks the event loop


def each_fifth(rare: Wait, usual: Wait) -> Wait:
    number = 0

    async def wait() -> None:
        nonlocal number
        number += 1
        await (usual if number % circuit_breaker.SLOW_PINGS else rare)()

    return wait


async def open_slowly(backend: Breaker, inner: FaultyBackend, operation: str = "get") -> None:
    inner.slow = {operation: slow, "ping": slow}

    async def is_open() -> bool:
        await CALLS[operation][0](backend)
        return not backend.available

    await until(is_open)


@pytest.mark.usefixtures("_small_limit")
@pytest.mark.parametrize("operation", ["get", "set", "acquire_lease"])
async def test_slow_backend_opens_the_circuit(
    operation: str, backend: Breaker, inner: FaultyBackend
) -> None:
    """A fast one closes it. Deletions are sent, because other processes may still read."""
    await open_slowly(backend, inner, operation)
    assert inner.called("ping") >= circuit_breaker.SLOW_PINGS
    inner.gates["delete"] = asyncio.Event()
    inner.calls.clear()

    await asyncio.gather(*(call(backend) for call, _ in NON_DELETIONS.values()))
    deletion = asyncio.create_task(backend.delete("other"))
    await until(lambda: inner.called("ping") > circuit_breaker.SLOW_PINGS)
    assert inner.requests == ["delete", "delete"]  # one by `set`, which did not wait
    inner.gates["delete"].set()
    assert await deletion == 1
    inner.slow.clear()
    await recover(backend, inner)

    assert inner.called("flush") == 0
    assert await backend.get_many("key", "other") == [None, None]


@pytest.mark.usefixtures("_small_limit")
async def test_deletion_missed_by_a_slow_backend_flushes_it(
    backend: Breaker, inner: FaultyBackend
) -> None:
    """No more deletions are sent until a ping succeeds."""
    await open_slowly(backend, inner)
    inner.outage = UNAVAILABLE
    inner.calls.clear()
    for _ in range(5):
        await backend.delete("other")
    assert inner.requests == ["delete"]

    inner.outage = None
    await until(lambda: inner.called("flush") == 1)

    assert not backend.available
    inner.slow.clear()
    await recover(backend, inner)
    assert await backend.get("other") is None


@pytest.mark.usefixtures("_small_limit")
@pytest.mark.parametrize("ping", [fast, busy, each_fifth(fast, slow)])
async def test_some_slow_operations_do_not_open_the_circuit(
    ping: Wait, backend: Breaker, inner: FaultyBackend
) -> None:
    """A pause, a large value, jitter, or a busy event loop of this process."""
    inner.slow = {"get": slow, "ping": ping}
    while inner.called("ping") <= 2 * circuit_breaker.SLOW_PINGS:
        await backend.get("key")

    assert backend.available


@pytest.mark.usefixtures("_small_limit")
async def test_some_fast_pings_do_not_close_the_circuit(
    backend: Breaker, inner: FaultyBackend
) -> None:
    await open_slowly(backend, inner)
    inner.slow["ping"] = each_fifth(slow, fast)
    inner.calls.clear()

    await until(lambda: inner.called("ping") > 4 * circuit_breaker.SLOW_PINGS)

    assert not backend.available


@pytest.mark.parametrize("operation", NON_DELETIONS)
async def test_error_of_one_operation_does_not_open_the_circuit(
    operation: str, backend: Breaker, inner: FaultyBackend, logs: Logs
) -> None:
    call, default = NON_DELETIONS[operation]
    inner.errors[operation] = READ_ONLY
    errors = metric("cache_errors_total", operation=operation)

    assert await call(backend) == default

    assert backend.available
    assert [log["event"] for log in logs] == ["cache_error"]
    assert metric("cache_errors_total", operation=operation) == errors + 1


async def test_scan_ends_when_the_backend_fails(backend: Breaker, inner: FaultyBackend) -> None:
    found = []
    async for key in backend.scan():
        found.append(key)
        await fail(backend, inner)

    assert len(found) == 1


async def test_ping_raises_immediately_while_the_circuit_is_open(
    backend: Breaker, inner: FaultyBackend
) -> None:
    await backend.ping()
    inner.outage = UNAVAILABLE
    with pytest.raises(CacheUnavailableError):
        await backend.ping()

    inner.gates["ping"] = asyncio.Event()
    with pytest.raises(CacheUnavailableError):
        await backend.ping()


@pytest.mark.parametrize("operation", ["get", "delete"])
@pytest.mark.parametrize("error", [ValueError("bad ex"), TypeError("a bug")])
async def test_programming_errors_are_raised(
    error: Exception, operation: str, backend: Breaker, inner: FaultyBackend
) -> None:
    inner.errors[operation] = error

    with pytest.raises(type(error)):
        await CALLS[operation][0](backend)

    assert backend.available


@pytest.mark.parametrize(("operation", "is_closed"), [("get", True), ("delete", False)])
async def test_cancelled_deletion_counts_as_missed(
    operation: str, backend: Breaker, inner: FaultyBackend, *, is_closed: bool
) -> None:
    gate = inner.gates[operation] = inner.gates["flush"] = asyncio.Event()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(CALLS[operation][0](backend), 0.01)

    assert backend.available is is_closed
    gate.set()
    await recover(backend, inner)
    assert await backend.get("key") == ("old" if is_closed else None)


async def test_circuit_closes_after_each_outage(
    backend: Breaker, inner: FaultyBackend, logs: Logs
) -> None:
    """Each outage is logged once, however many calls fail. No asyncio task remains after it."""
    tasks = other_tasks()
    for _ in range(2):
        logs.clear()
        inner.outage = UNAVAILABLE
        assert await asyncio.gather(*(backend.get("key") for _ in range(200))) == [None] * 200
        await until(lambda: inner.called("ping") > 3)
        inner.calls.clear()
        assert metric("cache_available") == 0
        assert len(other_tasks() - tasks) == 1
        await recover(backend, inner)
        await until(lambda: len(logs) == 2)

        assert await backend.get("key") == "old"
        assert metric("cache_available") == 1
        assert other_tasks() <= tasks
        assert [log["event"] for log in logs] == ["cache_unavailable", "cache_recovered"]
        assert logs[0]["cause"] == "connection refused"
        assert 0 < logs[1]["unavailable_seconds"] < 2 * TIMEOUT_SECONDS


@pytest.mark.parametrize(("operation", "is_closed"), [("set", True), ("delete", False)])
async def test_call_that_starts_before_an_outage_and_fails_after_it(
    operation: str, backend: Breaker, inner: FaultyBackend, *, is_closed: bool
) -> None:
    """It opens the circuit again only if a deletion was missed."""
    gate = inner.gates[operation] = asyncio.Event()
    late = asyncio.ensure_future(CALLS[operation][0](backend))
    await until(lambda: inner.called(operation) == 1)
    await fail(backend, inner)
    await recover(backend, inner)
    inner.errors[operation] = UNAVAILABLE
    if operation == "set":  # after a failed `set`, the old value is deleted
        inner.gates.pop("delete", None)
    gate.set()

    await late

    assert backend.available is is_closed
    inner.errors.clear()
    await recover(backend, inner)
    assert await backend.get("key") is None


async def test_unexpected_error_does_not_end_the_probe(
    backend: Breaker, inner: FaultyBackend, logs: Logs
) -> None:
    inner.errors["ping"] = TypeError("a bug")
    await fail(backend, inner)
    await until(lambda: inner.called("ping") == 2)
    assert [log["event"] for log in logs[:2]] == ["cache_unavailable", "cache_probe_failed"]
    del inner.errors["ping"]

    await recover(backend, inner)


@pytest.mark.parametrize("tags", [(), ("numbers",)], ids=["untagged", "tagged"])
async def test_cached_function_runs_on_each_call_while_the_circuit_is_open(
    backend: Breaker, inner: FaultyBackend, tags: tuple[str, ...]
) -> None:
    """No call waits for another one."""
    calls = 0

    @cached(tags=tags)
    async def number() -> int:
        nonlocal calls
        calls += 1
        return calls

    inner.outage = UNAVAILABLE
    with use_cache(Cache(backend, ttl=60)):
        async with asyncio.timeout(WAIT_SECONDS / 2):
            assert await asyncio.gather(*(number() for _ in range(5))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("operation", DELETIONS)
async def test_missed_deletion_flushes_the_cache_before_the_next_read(
    operation: str, backend: Breaker, inner: FaultyBackend
) -> None:
    await fail(backend, inner)
    await DELETIONS[operation][0](backend)
    assert inner.requests == []
    inner.outage = None

    while not backend.available:
        assert await backend.get("key") is None
        await asyncio.sleep(0)

    assert await backend.get_many("key", "other") == [None, None]
    assert inner.requests[:2] == ["flush", "get_many"]


@pytest.mark.parametrize("error", [UNAVAILABLE, READ_ONLY])
@pytest.mark.parametrize("operation", [*DELETIONS, "set"])
async def test_nothing_is_read_while_deletions_fail(
    operation: str, error: CacheError, backend: Breaker, inner: FaultyBackend
) -> None:
    """Although the backend responds. A failed `set` counts too: the old value is outdated."""
    inner.errors = dict.fromkeys([operation, "delete", "flush"], error)

    await CALLS[operation][0](backend)
    await until(lambda: inner.called("flush") > 2)

    assert await backend.get("key") is None
    assert not backend.available
    inner.errors.clear()
    await recover(backend, inner)
    assert await backend.get("key") is None
    assert inner.requests[-1] == "get"


@pytest.mark.parametrize("error", [None, READ_ONLY])
async def test_deletion_during_the_flush_is_sent_immediately(
    error: CacheError | None, backend: Breaker, inner: FaultyBackend
) -> None:
    """If it fails, another flush follows."""
    gate = inner.gates["flush"] = asyncio.Event()
    await fail(backend, inner)
    await backend.delete("key")
    inner.outage = None
    await until(lambda: inner.called("flush") == 1)
    if error is not None:
        inner.errors["delete_matching"] = error

    assert await backend.delete_matching("other") == (1 if error is None else 0)

    assert not backend.available
    gate.set()
    await recover(backend, inner)
    assert await backend.get_many("key", "other") == [None, None]
    assert inner.called("flush") == (1 if error is None else 2)


@pytest.mark.parametrize("is_flushing", [True, False])
async def test_closing_flushes_if_a_deletion_was_missed(
    inner: FaultyBackend, *, is_flushing: bool
) -> None:
    backend = Breaker(inner, retry_seconds=0.01 if is_flushing else 60)
    inner.gates["flush"] = asyncio.Event()
    await fail(backend, inner)
    await backend.delete("key")
    inner.outage = None
    if is_flushing:
        await until(lambda: inner.called("flush") == 1)
    inner.gates.clear()

    await backend.aclose()

    assert await inner.get("key") is None


@pytest.mark.parametrize("hangs", [True, False])
async def test_closing_logs_lost_deletions(
    inner: FaultyBackend, monkeypatch: pytest.MonkeyPatch, logs: Logs, *, hangs: bool
) -> None:
    """A backend that does not respond does not delay the exit of the process."""
    monkeypatch.setattr(circuit_breaker, "LAST_FLUSH_SECONDS", 0.01)
    backend = Breaker(inner)
    await fail(backend, inner)
    await backend.delete("key", "other")
    await backend.delete_matching("k*")
    if hangs:
        inner.gates["flush"] = asyncio.Event()

    await asyncio.wait_for(backend.aclose(), TIMEOUT_SECONDS)

    cause = "TimeoutError" if hangs else "connection refused"
    lost = {"backend": "faulty", "number": 2, "cause": cause}
    assert {"event": "cache_deletions_lost", "log_level": "warning", **lost} in logs
    assert inner.called("aclose") == 1
