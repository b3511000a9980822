import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.testing import LogCapture

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError
from src.cache.backends.memory import MemoryBackend
from src.cache.engine.circuit_breaker import (
    MAX_PENDING,
    MAX_PENDING_PATTERNS,
    CircuitBreakerBackend,
)

Logs = list[MutableMapping[str, Any]]

AWAY = CacheUnavailableError("connection refused")
READ_ONLY = CacheError("read-only replica")
PATIENCE_SECONDS = 60
REQUEST = ContextVar("REQUEST", default="none")


async def _keys(backend: CacheBackend) -> list[str]:
    return [key async for key in backend.scan()]


Call = Callable[[CacheBackend], Awaitable[object]]
OTHERS: dict[str, tuple[Call, object]] = {
    "get": (lambda backend: backend.get("key"), None),
    "get_many": (lambda backend: backend.get_many("key", "unknown"), [None, None]),
    "set": (lambda backend: backend.set("key", "new", 7), None),
    "set_many": (lambda backend: backend.set_many({"key": "new"}, 7), None),
    "add": (lambda backend: backend.add("key", "new", 7), True),
    "increment": (lambda backend: backend.increment("number", 3, 7), 3),
    "scan": (_keys, []),
    "lease": (lambda backend: backend.lease("key", "token", 7), True),
    "renew": (lambda backend: backend.renew("leased", "token", 7), False),
    "fulfil": (lambda backend: backend.fulfil("leased", "token", "new", 7), False),
    "release": (lambda backend: backend.release("leased", "token"), None),
}
DELETIONS: dict[str, tuple[Call, object]] = {
    "delete": (lambda backend: backend.delete("key"), 0),
    "delete_matching": (lambda backend: backend.delete_matching("k*"), 0),
    "flush": (lambda backend: backend.flush(), None),
}
CALLS = OTHERS | DELETIONS


class FaultyBackend(MemoryBackend):
    """Memory that may be told to wait, and then to fail, before it does what it is asked to."""

    name = "faulty"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.away: CacheUnavailableError | None = None
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.closed = False
        for operation in (*(OTHERS.keys() - {"scan"}), *DELETIONS, "ping", "info"):
            setattr(self, operation, self._faulty(operation))

    def _faulty(self, operation: str) -> Callable[..., Awaitable[object]]:
        do = getattr(super(), operation)

        async def call(*args: object) -> object:
            await self._meet(operation, *args)
            return await do(*args)

        return call

    async def _meet(self, operation: str, *args: object) -> None:
        self.calls.append((operation, *args))
        if gate := self.gates.get(operation):
            await gate.wait()
        if error := self.errors.get(operation, self.away):
            raise error

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        await self._meet("scan", pattern)
        async for key in super().scan(pattern):
            yield key

    async def aclose(self) -> None:
        self.closed = True
        await self._meet("aclose")

    def called(self, operation: str) -> int:
        return sum(name == operation for name, *_ in self.calls)

    @property
    def requests(self) -> list[str]:
        return [name for name, *_ in self.calls if name != "ping"]


def other_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"backend": "faulty", **labels}) or 0


async def make_inner() -> FaultyBackend:
    inner = FaultyBackend()
    await inner.set_many({"key": "old", "number": "1"})
    await inner.lease("leased", "token", 60)
    inner.calls.clear()
    return inner


@pytest.fixture
async def inner() -> FaultyBackend:
    return await make_inner()


@pytest.fixture
async def backend(inner: FaultyBackend) -> AsyncGenerator[CircuitBreakerBackend]:
    before = other_tasks()
    async with CircuitBreakerBackend(inner, retry_seconds=0.01) as backend:
        yield backend
        inner.away = None
        inner.errors.clear()
        inner.gates.clear()
    assert other_tasks() <= before


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Logs:
    capture = LogCapture()
    log = structlog.wrap_logger(None, [capture], wrapper_class=structlog.stdlib.BoundLogger)
    monkeypatch.setattr("src.cache.engine.circuit_breaker.log", log)
    return capture.entries


def events(logs: Logs) -> list[str]:
    return [entry["event"] for entry in logs]


async def fail(backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
    """Let an outage begin."""
    inner.away = AWAY
    await backend.get("key")
    assert not backend.available
    inner.calls.clear()


async def recover(backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
    inner.away = None
    await until(lambda: backend.available)


@pytest.mark.parametrize("operation", CALLS)
async def test_healthy(
    operation: str, backend: CircuitBreakerBackend, inner: FaultyBackend
) -> None:
    """While all is well, a call reaches the inner backend as it is, and its answer comes back."""
    call, _ = CALLS[operation]
    direct = await make_inner()

    assert await call(backend) == await call(direct)

    assert inner.calls == direct.calls


class TestDefaults:
    @pytest.mark.parametrize("operation", CALLS)
    async def test_away(
        self, operation: str, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """The failing call answers as if there were no cache, and so does the next one, at once."""
        call, default = CALLS[operation]
        inner.away = AWAY

        assert await call(backend) == default
        assert not backend.available
        assert await call(backend) == default

        assert inner.requests == [operation]

    @pytest.mark.parametrize("operation", OTHERS)
    async def test_single_failure(
        self, operation: str, backend: CircuitBreakerBackend, inner: FaultyBackend, logs: Logs
    ) -> None:
        """What one operation could not do is no reason to leave the backend alone."""
        call, default = OTHERS[operation]
        inner.errors[operation] = READ_ONLY

        assert await call(backend) == default

        assert backend.available
        assert events(logs) == ["cache_error"]

    async def test_scan_fails_midway(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """A scan ends where the backend fails."""
        found = []

        async for key in backend.scan():
            found.append(key)
            await fail(backend, inner)

        assert len(found) == 1

    async def test_ping(self, backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
        """A ping reports a failure, and an outage without asking the backend."""
        await backend.ping()
        inner.away = AWAY
        with pytest.raises(CacheUnavailableError):
            await backend.ping()
        assert not backend.available

        inner.gates["ping"] = asyncio.Event()
        with pytest.raises(CacheUnavailableError):
            await backend.ping()

    async def test_info(self, backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
        """The inner backend is described while it is there."""
        assert await backend.info() == await inner.info()

        await fail(backend, inner)

        assert await backend.info() == {}

    def test_ttl(self, inner: FaultyBackend) -> None:
        """Its default time to live is the inner one's."""
        inner.ttl = 7

        assert CircuitBreakerBackend(inner).ttl == 7

    @pytest.mark.parametrize("operation", ["get", "delete"])
    @pytest.mark.parametrize("error", [ValueError("bad ex"), TypeError("a bug")])
    async def test_other_errors(
        self, error: Exception, operation: str, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """Mistakes of the caller and bugs are not hidden."""
        inner.errors[operation] = error

        with pytest.raises(type(error)):
            await CALLS[operation][0](backend)

        assert backend.available

    async def test_cancelled_read(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """A caller who gives up says nothing about the backend."""
        inner.gates["get"] = asyncio.Event()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(backend.get("key"), 0.01)

        assert backend.available


class TestBreaker:
    async def test_many_failures(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend, logs: Logs
    ) -> None:
        """However many calls fail together, it is one outage with one line in the log."""
        inner.away = AWAY
        gate = inner.gates["get"] = asyncio.Event()
        calls = [asyncio.create_task(backend.get("key")) for _ in range(200)]
        await until(lambda: inner.called("get") == 200)
        gate.set()

        assert await asyncio.gather(*calls) == [None] * 200

        await until(lambda: inner.called("ping") > 3)
        assert logs == [
            {
                "event": "cache_unavailable",
                "log_level": "warning",
                "backend": "faulty",
                "cause": "connection refused",
            }
        ]

    async def test_recovery(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend, logs: Logs
    ) -> None:
        """It heals by itself, says so, and leaves no task behind."""
        tasks = other_tasks()
        await fail(backend, inner)
        assert len(other_tasks() - tasks) == 1

        await recover(backend, inner)

        assert await backend.get("key") == "old"
        assert other_tasks() <= tasks
        assert events(logs) == ["cache_unavailable", "cache_available"]
        assert logs[1]["log_level"] == "info"
        assert 0 < logs[1]["away_seconds"] < 2 * PATIENCE_SECONDS

    async def test_second_outage(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend, logs: Logs
    ) -> None:
        """Each outage is told of, and heals."""
        for _ in range(2):
            await fail(backend, inner)
            await recover(backend, inner)

        assert events(logs) == ["cache_unavailable", "cache_available"] * 2

    async def test_late_failure(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend, logs: Logs
    ) -> None:
        """A call from before the outage that fails after it does not begin another one."""
        gate = inner.gates["set"] = asyncio.Event()
        late = asyncio.create_task(backend.set("key", "new"))
        await until(lambda: inner.called("set") == 1)
        await fail(backend, inner)
        await recover(backend, inner)
        inner.errors["set"] = AWAY
        gate.set()

        await late

        assert backend.available
        assert events(logs) == ["cache_unavailable", "cache_available"]

    async def test_context(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The task that heals does not run in the context of the request that met the failure."""
        seen = []

        async def ping() -> None:
            seen.append(REQUEST.get())

        monkeypatch.setattr(inner, "ping", ping)
        REQUEST.set("mine")

        await fail(backend, inner)
        await recover(backend, inner)

        assert seen == ["none"]

    async def test_bug_while_healing(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend, logs: Logs
    ) -> None:
        """A bug that healing meets is logged, and does not end it."""
        inner.errors["ping"] = TypeError("a bug")
        await fail(backend, inner)
        await until(lambda: inner.called("ping") == 2)
        assert not backend.available
        del inner.errors["ping"]

        await recover(backend, inner)

        assert events(logs)[:2] == ["cache_unavailable", "cache_retry_failed"]
        assert isinstance(logs[1]["exc_info"], TypeError)

    async def test_errors_are_logged_now_and_then(
        self,
        backend: CircuitBreakerBackend,
        inner: FaultyBackend,
        logs: Logs,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of each operation's errors one a minute is logged."""
        inner.errors = {"set": READ_ONLY, "add": READ_ONLY}
        now = 1000.0
        monkeypatch.setattr("src.cache.engine.circuit_breaker.monotonic", lambda: now)

        for _ in range(3):
            await backend.set("key", "new")
            await backend.add("key", "new")
        assert [entry["operation"] for entry in logs] == ["set", "add"]
        assert logs[0]["cause"] == "read-only replica"
        now += 60
        await backend.set("key", "new")

        assert [entry["operation"] for entry in logs] == ["set", "add", "set"]


class TestDeletions:
    @pytest.mark.parametrize("operation", DELETIONS)
    async def test_while_away(
        self, operation: str, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """What is deleted in an outage is gone before anything is read again."""
        await fail(backend, inner)
        await DELETIONS[operation][0](backend)
        assert operation not in inner.requests
        inner.away = None

        while not backend.available:
            assert await backend.get("key") is None
            await asyncio.sleep(0)

        assert await backend.get("key") is None
        assert inner.requests == [operation, "get"]

    @pytest.mark.parametrize("operation", ["set", "set_many"])
    @pytest.mark.parametrize("error", [AWAY, READ_ONLY])
    async def test_of_what_could_not_be_replaced(
        self,
        error: CacheError,
        operation: str,
        backend: CircuitBreakerBackend,
        inner: FaultyBackend,
    ) -> None:
        """A value whose successor was not stored is outdated."""
        inner.errors[operation] = error

        await OTHERS[operation][0](backend)
        inner.errors.clear()
        await recover(backend, inner)

        assert await backend.get("key") is None

    @pytest.mark.parametrize("error", [AWAY, READ_ONLY])
    @pytest.mark.parametrize("operation", DELETIONS)
    async def test_that_fail(
        self,
        operation: str,
        error: CacheError,
        backend: CircuitBreakerBackend,
        inner: FaultyBackend,
    ) -> None:
        """While a deletion cannot be carried out, nothing is read, though the backend answers."""
        inner.errors[operation] = error

        await DELETIONS[operation][0](backend)
        await until(lambda: inner.called(operation) > 2)

        assert not backend.available
        assert await backend.get("key") is None
        inner.errors.clear()
        await recover(backend, inner)
        assert await backend.get("key") is None
        assert inner.requests[-1] == "get"

    async def test_cancelled(self, backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
        """A deletion whose caller gives up is carried out nevertheless."""
        gate = inner.gates["delete"] = asyncio.Event()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(backend.delete("key"), 0.01)

        assert not backend.available
        gate.set()
        await recover(backend, inner)
        assert await backend.get("key") is None

    async def test_late_failure(self, backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
        """A deletion from before an outage that fails after it is not forgotten either."""
        gate = inner.gates["delete"] = asyncio.Event()
        late = asyncio.create_task(backend.delete("key"))
        await until(lambda: inner.called("delete") == 1)
        await fail(backend, inner)
        await recover(backend, inner)
        inner.errors["delete"] = AWAY
        gate.set()

        await late

        assert not backend.available
        inner.errors.clear()
        await recover(backend, inner)
        assert await backend.get("key") is None

    async def test_while_replaying(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """A deletion that comes while others are replayed is carried out at once."""
        await inner.set("other", "old")
        gate = inner.gates["delete"] = asyncio.Event()
        await fail(backend, inner)
        await backend.delete("key")
        inner.away = None
        await until(lambda: inner.called("delete") == 1)

        assert await backend.delete_matching("other") == 1

        assert not backend.available
        gate.set()
        await recover(backend, inner)
        assert await backend.get_many("key", "other") == [None, None]

    async def test_that_fail_while_replaying(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """A deletion that fails while others are replayed is replayed as well."""
        await inner.set("other", "old")
        gate = inner.gates["delete"] = asyncio.Event()
        await fail(backend, inner)
        await backend.delete("key")
        inner.away = None
        await until(lambda: inner.called("delete") == 1)
        inner.errors["delete_matching"] = READ_ONLY

        assert await backend.delete_matching("other") == 0

        inner.errors.clear()
        gate.set()
        await recover(backend, inner)
        assert await backend.get_many("key", "other") == [None, None]
        assert inner.called("ping") == 1

    async def test_after_failed_replay(
        self, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """Once a replay has failed, deletions leave the backend alone again."""
        inner.errors["delete"] = AWAY
        await backend.delete("key")
        await until(lambda: inner.called("delete") == 2)
        inner.away = AWAY

        await backend.delete_matching("k*")

        assert inner.called("delete_matching") == 0

    async def test_each_once(self, backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
        """Deletions are carried out together, and each but once."""
        await fail(backend, inner)
        for _ in range(3):
            await backend.delete("a")
            await backend.delete_matching("b*")
        inner.calls.clear()

        await recover(backend, inner)

        assert inner.calls == [("ping",), ("delete", "a"), ("delete_matching", "b*")]

    @pytest.mark.parametrize(
        ("number", "delete"),
        [
            (MAX_PENDING, lambda backend, n: backend.delete(f"key:{n}")),
            (MAX_PENDING_PATTERNS, lambda backend, n: backend.delete_matching(f"key:{n}:*")),
        ],
    )
    async def test_too_many(
        self,
        number: int,
        delete: Callable[[CacheBackend, int], Awaitable[int]],
        backend: CircuitBreakerBackend,
        inner: FaultyBackend,
    ) -> None:
        """More deletions than are worth remembering become one of everything."""
        await fail(backend, inner)
        for n in range(number):
            await delete(backend, n)
        await delete(backend, 0)
        await recover(backend, inner)
        assert "flush" not in inner.requests

        await fail(backend, inner)
        for n in range(number + 2):
            await delete(backend, n)
        inner.calls.clear()
        await recover(backend, inner)

        assert inner.requests == ["flush"]


class TestClosing:
    async def test_healthy(self, inner: FaultyBackend, logs: Logs) -> None:
        """The inner backend is closed with it."""
        async with CircuitBreakerBackend(inner):
            pass

        assert inner.calls == [("aclose",)]
        assert logs == []

    async def test_away(self, inner: FaultyBackend) -> None:
        """Nothing goes on in the background."""
        tasks = other_tasks()
        backend = CircuitBreakerBackend(inner)
        await fail(backend, inner)

        await backend.aclose()

        assert other_tasks() <= tasks
        assert inner.closed

    async def test_call_in_flight(self, inner: FaultyBackend, logs: Logs) -> None:
        """A call that fails because of the closing starts nothing anew."""
        tasks = other_tasks()
        backend = CircuitBreakerBackend(inner)
        gate = inner.gates["get"] = asyncio.Event()
        late = asyncio.create_task(backend.get("key"))
        await until(lambda: inner.called("get") == 1)
        await backend.aclose()
        inner.away = AWAY
        gate.set()

        assert await late is None

        assert other_tasks() <= tasks
        assert logs == []

    async def test_bug(self, inner: FaultyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bug that the end of healing brings to light does not begin it again."""
        pinged = asyncio.Event()

        async def ping() -> None:
            pinged.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise TypeError("a bug")

        monkeypatch.setattr(inner, "ping", ping)
        tasks = other_tasks()
        backend = CircuitBreakerBackend(inner, retry_seconds=0.01)
        await fail(backend, inner)
        await pinged.wait()

        await backend.aclose()

        assert other_tasks() <= tasks

    async def test_last_try(self, inner: FaultyBackend, logs: Logs) -> None:
        """Pending deletions are carried out, if the backend is back."""
        backend = CircuitBreakerBackend(inner)
        await fail(backend, inner)
        await backend.delete("key")
        inner.away = None

        await backend.aclose()

        assert await inner.get("key") is None
        assert events(logs) == ["cache_unavailable"]

    async def test_interrupted_replay(self, inner: FaultyBackend) -> None:
        """Deletions that were being replayed are carried out."""
        backend = CircuitBreakerBackend(inner, retry_seconds=0.01)
        inner.gates["delete"] = asyncio.Event()
        await fail(backend, inner)
        await backend.delete("key")
        inner.away = None
        await until(lambda: inner.called("delete") == 1)
        inner.gates.clear()

        await backend.aclose()

        assert await inner.get("key") is None

    async def test_lost_deletions(self, inner: FaultyBackend, logs: Logs) -> None:
        """Deletions that cannot be carried out are told of."""
        backend = CircuitBreakerBackend(inner)
        await fail(backend, inner)
        await backend.delete("key", "other")
        await backend.delete_matching("k*")

        await backend.aclose()

        assert inner.closed
        assert logs[1:] == [
            {
                "event": "cache_deletions_lost",
                "log_level": "warning",
                "backend": "faulty",
                "number": 3,
                "everything": False,
                "cause": "connection refused",
            }
        ]

    async def test_no_answer(
        self, inner: FaultyBackend, logs: Logs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A backend that does not answer does not hold up the end of the process."""
        monkeypatch.setattr("src.cache.engine.circuit_breaker.LAST_TRY_SECONDS", 0.01)
        backend = CircuitBreakerBackend(inner)
        await fail(backend, inner)
        await backend.flush()
        inner.gates["flush"] = asyncio.Event()

        await asyncio.wait_for(backend.aclose(), PATIENCE_SECONDS)

        assert inner.closed
        assert events(logs) == ["cache_unavailable", "cache_deletions_lost"]
        assert logs[1]["everything"]

    async def test_failing_close(self, inner: FaultyBackend) -> None:
        """That the inner backend cannot be closed is nobody's concern."""
        inner.errors["aclose"] = AWAY

        await CircuitBreakerBackend(inner).aclose()


class TestMetrics:
    async def test_available(self, backend: CircuitBreakerBackend, inner: FaultyBackend) -> None:
        """The gauge follows the breaker."""
        assert metric("cache_available") == 1
        await fail(backend, inner)
        assert metric("cache_available") == 0
        await recover(backend, inner)
        assert metric("cache_available") == 1

    @pytest.mark.parametrize("operation", ["set", "delete"])
    async def test_operations(
        self, operation: str, backend: CircuitBreakerBackend, inner: FaultyBackend
    ) -> None:
        """What reached the backend is timed; what failed is counted too."""
        call, _ = CALLS[operation]
        count = "cache_operation_duration_seconds_count"
        timed = metric(count, operation=operation)
        failed = metric("cache_errors_total", operation=operation)

        await call(backend)
        inner.away = AWAY
        await call(backend)
        await call(backend)

        assert metric(count, operation=operation) == timed + 2
        assert metric("cache_errors_total", operation=operation) == failed + 1
