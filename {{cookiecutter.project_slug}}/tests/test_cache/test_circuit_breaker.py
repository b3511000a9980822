"""The circuit breaker around a backend that can be told to fail."""

import asyncio
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
from tests.test_cache.contract import PATIENCE_SECONDS, keys_of, until

UNAVAILABLE = CacheUnavailableError("connection refused")
READ_ONLY = CacheError("read-only replica")
Logs = list[MutableMapping[str, Any]]
Call = Callable[[CacheBackend], Awaitable[object]]
# Each with what it returns while the circuit is open.
OTHERS: dict[str, tuple[Call, object]] = {
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
CALLS = OTHERS | DELETIONS


class FaultyBackend(MemoryBackend):
    """Memory that waits at a gate, and then fails, before it does what it is asked to."""

    name = "faulty"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.outage: CacheUnavailableError | None = None
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        for operation in (*(OTHERS.keys() - {"scan"}), *DELETIONS, "ping"):
            setattr(self, operation, self._faulty(operation))

    def _faulty(self, operation: str) -> Callable[..., Awaitable[object]]:
        do = getattr(super(), operation)

        async def call(*args: object) -> object:
            await self._meet(operation, *args)
            return await do(*args)

        call.__name__ = operation
        return call

    async def _meet(self, operation: str, *args: object) -> None:
        self.calls.append((operation, *args))
        if gate := self.gates.get(operation):
            await gate.wait()
        if error := self.errors.get(operation, self.outage):
            raise error

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        await self._meet("scan", pattern)
        async for key in super().scan(pattern):
            yield key

    async def aclose(self) -> None:
        await self._meet("aclose")

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
    assert other_tasks() <= before


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Logs:
    """What the circuit breaker logs, however the tests before have configured the log."""
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
async def test_while_closed_calls_pass_through(
    operation: str, backend: Breaker, inner: FaultyBackend
) -> None:
    call, _ = CALLS[operation]
    direct = await make_inner()

    assert await call(backend) == await call(direct)

    assert inner.calls == direct.calls


@pytest.mark.parametrize("operation", CALLS)
async def test_an_outage_opens_it(operation: str, backend: Breaker, inner: FaultyBackend) -> None:
    """The failing call returns what an empty cache would, and so does the next one, at once."""
    call, default = CALLS[operation]
    inner.outage = UNAVAILABLE

    assert await call(backend) == default
    assert not backend.available
    assert await call(backend) == default

    assert inner.requests == [operation]


@pytest.mark.parametrize("operation", OTHERS)
async def test_one_failed_operation_does_not_open_it(
    operation: str, backend: Breaker, inner: FaultyBackend, logs: Logs
) -> None:
    call, default = OTHERS[operation]
    inner.errors[operation] = READ_ONLY
    errors = metric("cache_errors_total", operation=operation)

    assert await call(backend) == default

    assert backend.available
    assert [log["event"] for log in logs] == ["cache_error"]
    assert metric("cache_errors_total", operation=operation) == errors + 1


async def test_a_scan_ends_where_the_backend_fails(backend: Breaker, inner: FaultyBackend) -> None:
    found = []
    async for key in backend.scan():
        found.append(key)
        await fail(backend, inner)

    assert len(found) == 1


async def test_a_ping_raises_at_once_while_it_is_open(
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
async def test_mistakes_and_bugs_are_raised(
    error: Exception, operation: str, backend: Breaker, inner: FaultyBackend
) -> None:
    inner.errors[operation] = error

    with pytest.raises(type(error)):
        await CALLS[operation][0](backend)

    assert backend.available


@pytest.mark.parametrize(("operation", "stays_closed"), [("get", True), ("delete", False)])
async def test_a_cancelled_deletion_counts_as_missed_and_a_read_as_nothing(
    operation: str, backend: Breaker, inner: FaultyBackend, *, stays_closed: bool
) -> None:
    gate = inner.gates[operation] = inner.gates["flush"] = asyncio.Event()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(CALLS[operation][0](backend), 0.01)

    assert backend.available is stays_closed
    gate.set()
    await recover(backend, inner)
    assert await backend.get("key") == ("old" if stays_closed else None)


async def test_it_closes_by_itself_after_each_outage(
    backend: Breaker, inner: FaultyBackend, logs: Logs
) -> None:
    """However many calls fail, it says so once in log and metric, and leaves no task behind."""
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
        assert 0 < logs[1]["unavailable_seconds"] < 2 * PATIENCE_SECONDS


@pytest.mark.parametrize(("operation", "stays_closed"), [("set", True), ("delete", False)])
async def test_a_call_from_before_an_outage_that_fails_after_it(
    operation: str, backend: Breaker, inner: FaultyBackend, *, stays_closed: bool
) -> None:
    """It does not open the circuit again, unless a deletion was missed."""
    gate = inner.gates[operation] = asyncio.Event()
    late = asyncio.ensure_future(CALLS[operation][0](backend))
    await until(lambda: inner.called(operation) == 1)
    await fail(backend, inner)
    await recover(backend, inner)
    inner.errors[operation] = UNAVAILABLE
    if operation == "set":  # which is followed by a deletion of the value that it replaces
        inner.gates.pop("delete", None)
    gate.set()

    await late

    assert backend.available is stays_closed
    inner.errors.clear()
    await recover(backend, inner)
    assert await backend.get("key") is None


async def test_a_bug_does_not_end_the_probe(
    backend: Breaker, inner: FaultyBackend, logs: Logs
) -> None:
    inner.errors["ping"] = TypeError("a bug")
    await fail(backend, inner)
    await until(lambda: inner.called("ping") == 2)
    assert [log["event"] for log in logs[:2]] == ["cache_unavailable", "cache_probe_failed"]
    del inner.errors["ping"]

    await recover(backend, inner)


@pytest.mark.parametrize("tags", [(), ("numbers",)], ids=["untagged", "tagged"])
async def test_while_it_is_open_each_call_of_a_cached_function_runs(
    backend: Breaker, inner: FaultyBackend, tags: tuple[str, ...]
) -> None:
    """None waits for another."""
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
async def test_a_deletion_missed_in_an_outage_flushes_before_anything_is_read(
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
async def test_while_a_deletion_fails_nothing_is_read(
    operation: str, error: CacheError, backend: Breaker, inner: FaultyBackend
) -> None:
    """Though the backend answers. A failed `set` counts, for what it replaces is outdated."""
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
async def test_a_deletion_during_the_flush_is_done_at_once(
    error: CacheError | None, backend: Breaker, inner: FaultyBackend
) -> None:
    """If it fails there is another flush."""
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
    """A backend that does not answer does not hold up the end of the process."""
    monkeypatch.setattr(circuit_breaker, "LAST_FLUSH_SECONDS", 0.01)
    backend = Breaker(inner)
    await fail(backend, inner)
    await backend.delete("key", "other")
    await backend.delete_matching("k*")
    if hangs:
        inner.gates["flush"] = asyncio.Event()

    await asyncio.wait_for(backend.aclose(), PATIENCE_SECONDS)

    cause = "TimeoutError" if hangs else "connection refused"
    lost = {"backend": "faulty", "number": 2, "cause": cause}
    assert {"event": "cache_deletions_lost", "log_level": "warning", **lost} in logs
    assert inner.called("aclose") == 1
