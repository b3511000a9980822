"""Circuit breaker: while the cache backend fails, the service is slower but keeps working."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import Context
from enum import Enum
from functools import cache, partial
from time import monotonic, perf_counter
from typing import Any, TypeVar, TypeVarTuple

import structlog
from prometheus_client import Counter, Gauge, Histogram

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError, Value
from src.core.rate_limits import Counted

RETRY_SECONDS = 1.0  # between pings
SLOW_SECONDS = 0.05  # of one operation; an expensive computation may take as long
SLOW_PINGS = 5  # in a row open the circuit; as many fast ones close it
TICKS = 10  # during a slow ping, see `_is_slow`
LAST_FLUSH_SECONDS = 1.0  # timeout of the flush when the process exits
WARN_SECONDS = 60.0  # between two warnings about the same operation

Args = TypeVarTuple("Args")
D = TypeVar("D")
T = TypeVar("T")

log = structlog.get_logger(__name__)

OPERATION_DURATION = Histogram(
    "cache_operation_duration_seconds",
    "Duration of cache backend operations.",
    ["backend", "operation"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)
ERRORS = Counter("cache_errors_total", "Failed cache backend operations.", ["backend", "operation"])
AVAILABLE = Gauge(
    "cache_available",
    "1 while the circuit breaker of every process is closed, else 0.",
    ["backend"],
    multiprocess_mode="livemin",
)


class Circuit(Enum):
    CLOSED = "closed"  # all operations are sent to the backend
    OPEN = "open"  # no operation is sent; a probe pings the backend regularly
    HALF_OPEN = "half-open"  # the backend responds, perhaps slowly: only deletions are sent


class CircuitBreakerBackend(CacheBackend):
    """Behaves like an empty cache while the inner backend is unavailable.

    Only `ping` raises CacheError. An outage opens the circuit, so that no request waits for a
    server that does not respond. After a slow operation, several slow pings open it halfway: other
    processes may still read, so deletions are sent. An asyncio task probes the server until it
    recovers. If a deletion was missed during the outage, the namespace is flushed before the next
    read.
    """

    def __init__(self, inner: CacheBackend, *, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(ttl=inner.ttl)
        self.name = inner.name
        self.inner = inner
        self._retry_seconds = retry_seconds
        self._circuit = Circuit.CLOSED
        self._opened_at = 0.0
        self._outages = 0
        self._missed_deletions = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._next_check = 0.0
        self._warn_after: dict[str, float] = {}
        # Cached, because `labels()` takes longer than `observe()`.
        self._duration_of = cache(partial(OPERATION_DURATION.labels, inner.name))
        AVAILABLE.labels(inner.name).set(1)

    @property
    def available(self) -> bool:
        return self._circuit is Circuit.CLOSED

    async def aclose(self) -> None:
        self._circuit = Circuit.OPEN  # a failure after this line starts no probe
        try:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            try:
                async with asyncio.timeout(LAST_FLUSH_SECONDS):
                    await self._flush_if_deletion_missed()
            except (CacheError, TimeoutError) as error:
                number, cause = self._missed_deletions, _error_text(error)
                log.warning("cache_deletions_lost", backend=self.name, number=number, cause=cause)
            await self.inner.aclose()
        except CacheError as error:
            self._record_error("aclose", error)

    async def get(self, key: str) -> Value | None:
        return await self._attempt(self.inner.get, None, key)

    async def get_many(self, *keys: str) -> list[Value | None]:
        return await self._attempt(self.inner.get_many, [None] * len(keys), *keys)

    async def set(self, key: str, value: Value, ex: float | None = None) -> None:
        if await self._attempt(self.inner.set, False, key, value, ex) is False:
            # The old value is outdated. Do not wait for a slow backend.
            if self._circuit is Circuit.HALF_OPEN:
                self._start(self.delete(key))
            else:
                await self.delete(key)

    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        return await self._attempt(self.inner.add, True, key, value, ex)

    async def delete(self, *keys: str) -> int:
        return await self._attempt(self.inner.delete, 0, *keys, is_deletion=True)

    async def delete_matching(self, pattern: str) -> int:
        return await self._attempt(self.inner.delete_matching, 0, pattern, is_deletion=True)

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        keys = self.inner.scan(pattern)

        async def scan() -> str | None:
            return await anext(keys, None)

        while (key := await self._attempt(scan, None)) is not None:
            yield key

    async def flush(self) -> None:
        await self._attempt(self.inner.flush, None, is_deletion=True)

    async def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        # On failure, return True: False would make the caller wait for another lease holder.
        return await self._attempt(self.inner.acquire_lease, True, key, token, seconds)

    async def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        return await self._attempt(self.inner.renew_lease, False, key, token, seconds)

    async def set_if_leased(
        self, key: str, token: str, value: Value, ex: float | None = None
    ) -> bool:
        return await self._attempt(self.inner.set_if_leased, False, key, token, value, ex)

    async def release_lease(self, key: str, token: str) -> None:
        await self._attempt(self.inner.release_lease, None, key, token)

    async def count(self, key: str, seconds: int) -> Counted | None:
        return await self._attempt(self.inner.count, None, key, seconds)

    async def ping(self) -> None:
        if await self._attempt(self.inner.ping, False) is False:
            raise CacheUnavailableError(f"The cache ({self.name}) is unavailable.")

    async def info(self) -> dict[str, Any]:
        """Return the inner backend's information, or `{}` if it is unavailable."""
        empty: dict[str, Any] = {}
        return await self._attempt(self.inner.info, empty)

    async def _attempt(
        self,
        call: Callable[[*Args], Awaitable[T]],
        default: D,
        *args: *Args,
        is_deletion: bool = False,
    ) -> T | D:
        """Call the inner backend, or return the default if it is unavailable or fails."""
        if not (self.available or (is_deletion and self._circuit is Circuit.HALF_OPEN)):
            self._missed_deletions += is_deletion
            return default
        operation = call.__name__
        outages = self._outages
        started = perf_counter()
        try:
            return await call(*args)
        except CacheError as error:
            self._record_error(operation, error)
            if is_deletion:
                self._missed_deletions += 1
                self._open(error)
            # Ignore an error from an outage that has already ended.
            elif isinstance(error, CacheUnavailableError) and outages == self._outages:
                self._open(error)
            return default
        except asyncio.CancelledError as error:
            if is_deletion:  # the backend may not have executed it
                self._missed_deletions += 1
                self._open(error)
            raise
        finally:
            ended = perf_counter()
            self._duration_of(operation).observe(ended - started)
            if ended - started > SLOW_SECONDS and ended > self._next_check and self.available:
                self._next_check = math.inf
                self._start(self._check())

    def _record_error(self, operation: str, error: CacheError) -> None:
        ERRORS.labels(self.name, operation).inc()
        # `_open` logs outages.
        is_due = monotonic() >= self._warn_after.get(operation, 0)
        if is_due and not isinstance(error, CacheUnavailableError):
            self._warn_after[operation] = monotonic() + WARN_SECONDS
            log.warning("cache_error", backend=self.name, operation=operation, cause=str(error))

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        # With an empty context, the task does not log the id of the request that failed, and does
        # not keep the objects in that request's context alive.
        task = asyncio.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self) -> None:
        """Open the circuit if all pings are slow: one pause or large value does not open it."""
        outages = self._outages
        try:
            pings = 0
            while pings < SLOW_PINGS and await self._is_slow():
                pings += 1
            if pings == SLOW_PINGS and outages == self._outages:
                self._open(CacheUnavailableError(f"It is slower than {SLOW_SECONDS:g} s."), pings)
        except CacheError:
            pass  # the next operation fails too
        finally:
            self._next_check = perf_counter() + self._retry_seconds

    async def _is_slow(self) -> bool:
        """Ping the backend. A busy event loop of this process delays the ticks too."""
        ticks = 0
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal ticks, timer
            ticks += 1
            timer = loop.call_later(SLOW_SECONDS / TICKS, tick)

        loop = asyncio.get_running_loop()
        timer = loop.call_later(SLOW_SECONDS / TICKS, tick)
        try:
            await self.inner.ping()
        finally:
            timer.cancel()
        return ticks >= TICKS

    def _open(self, error: BaseException, pings: int = 1) -> None:
        if self._circuit is Circuit.HALF_OPEN and isinstance(error, CacheUnavailableError):
            self._circuit = Circuit.OPEN
        if not self.available:
            return
        self._circuit = Circuit.OPEN if pings == 1 else Circuit.HALF_OPEN
        self._opened_at = monotonic()
        self._outages += 1
        AVAILABLE.labels(self.name).set(0)
        log.warning("cache_unavailable", backend=self.name, cause=_error_text(error))
        # If the backend responds and has only missed a deletion, probe without a delay.
        delay = self._retry_seconds if isinstance(error, CacheUnavailableError) else 0
        self._start(self._probe(delay, pings))

    async def _probe(self, delay: float, pings: int) -> None:
        """Wait for fast pings, flush the backend if it missed a deletion, close the circuit."""
        while self._circuit is not Circuit.CLOSED:
            await asyncio.sleep(delay)
            delay = self._retry_seconds
            try:
                pings = SLOW_PINGS if await self._is_slow() else pings - 1
                self._circuit = Circuit.HALF_OPEN
                await self._flush_if_deletion_missed()
            except CacheError as error:
                self._circuit = Circuit.OPEN
                self._record_error("probe", error)
            except Exception:
                self._circuit = Circuit.OPEN
                log.exception("cache_probe_failed", backend=self.name)
            else:
                if pings <= 0:
                    self._circuit = Circuit.CLOSED
        AVAILABLE.labels(self.name).set(1)
        seconds = round(monotonic() - self._opened_at, 3)
        log.info("cache_recovered", backend=self.name, unavailable_seconds=seconds)

    async def _flush_if_deletion_missed(self) -> None:
        """Flush the namespace; again if another deletion is missed during the flush."""
        while missed := self._missed_deletions:
            await self.inner.flush()
            self._missed_deletions -= missed


def _error_text(error: BaseException) -> str:
    return str(error) or type(error).__name__
