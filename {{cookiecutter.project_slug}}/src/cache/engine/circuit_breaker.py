"""A cache that may fail at any time, without anybody who uses it having to care."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from functools import cache, partial
from time import monotonic, perf_counter
from typing import Any, TypeVar, TypeVarTuple

import structlog
from prometheus_client import Counter, Gauge, Histogram

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError, Value

RETRY_SECONDS = 2.0
LAST_TRY_SECONDS = 1.0
WARN_SECONDS = 60.0
# Beyond these many deletions it is simpler to delete everything.
MAX_PENDING = 10_000
MAX_PENDING_PATTERNS = 100  # each of them walks through the whole namespace

Args = TypeVarTuple("Args")
T = TypeVar("T")

log = structlog.get_logger(__name__)

OPERATION_DURATION = Histogram(
    "cache_operation_duration_seconds",
    "How long the backend took for one operation.",
    ["backend", "operation"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)
ERRORS = Counter(
    "cache_errors_total", "Operations that the backend could not do.", ["backend", "operation"]
)
AVAILABLE = Gauge(
    "cache_available",
    "1 while the backend is in use, 0 while it is left alone; the worst of all processes.",
    ["backend"],
    multiprocess_mode="livemin",
)


@dataclass
class _Deletions:
    keys: set[str] = field(default_factory=set)
    patterns: set[str] = field(default_factory=set)
    everything: bool = False

    def __len__(self) -> int:
        return len(self.keys) + len(self.patterns) + self.everything

    def add(self, other: "_Deletions") -> None:
        self.keys |= other.keys
        self.patterns |= other.patterns
        self.everything |= other.everything
        if len(self) > MAX_PENDING or len(self.patterns) > MAX_PENDING_PATTERNS:
            self.everything = True
        if self.everything:
            self.keys.clear()
            self.patterns.clear()

    async def carry_out(self, backend: CacheBackend) -> None:
        if self.everything:
            await backend.flush()
        if self.keys:
            await backend.delete(*self.keys)
        for pattern in self.patterns:
            await backend.delete_matching(pattern)


class CircuitBreakerBackend(CacheBackend):
    """Behave as if there were no cache for as long as the inner backend is away.

    Only `ping` raises CacheError. Once the inner backend was unavailable it is left alone: a task
    of our own looks after it, so that no request waits for a server that does not answer. What
    should have been deleted meanwhile is deleted before anything is read again.
    """

    def __init__(self, inner: CacheBackend, *, retry_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(ttl=inner.ttl)
        self.name = inner.name
        self._inner = inner
        self._retry_seconds = retry_seconds
        self._available = True
        self._away_since = 0.0
        self._outages = 0
        self._pending = _Deletions()
        self._replaying = False
        self._healer: asyncio.Task[None] | None = None
        self._quiet_until: dict[str, float] = {}
        # Looked up once per operation: it costs more than observing.
        self._duration_of = cache(partial(OPERATION_DURATION.labels, inner.name))
        AVAILABLE.labels(inner.name).set(1)

    @property
    def available(self) -> bool:
        return self._available

    async def aclose(self) -> None:
        healer, self._healer = self._healer, None
        self._available = False  # what fails from now on starts no healer
        try:
            if healer:
                healer.cancel()
                await asyncio.wait([healer])
            await self._try_a_last_time()
        finally:
            await self._close_inner()

    async def get(self, key: str) -> Value | None:
        return await self._attempt("get", None, self._inner.get, key)

    async def get_many(self, *keys: str) -> list[Value | None]:
        return await self._attempt("get_many", [None] * len(keys), self._inner.get_many, *keys)

    async def set(self, key: str, value: Value, ex: float | None = None) -> None:
        if not await self._attempt("set", False, _succeeds, self._inner.set, key, value, ex):
            await self.delete(key)  # the value that it replaces is outdated

    async def set_many(self, values: Mapping[str, Value], ex: float | None = None) -> None:
        set_many = self._inner.set_many
        if not await self._attempt("set_many", False, _succeeds, set_many, values, ex):
            await self.delete(*values)

    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        return await self._attempt("add", True, self._inner.add, key, value, ex)

    async def increment(self, key: str, by: int = 1, ex: float | None = None) -> int:
        return await self._attempt("increment", by, self._inner.increment, key, by, ex)

    async def delete(self, *keys: str) -> int:
        deletions = _Deletions(keys={*keys})
        return await self._delete("delete", 0, deletions, self._inner.delete, *keys)

    async def delete_matching(self, pattern: str) -> int:
        deletions = _Deletions(patterns={pattern})
        delete = self._inner.delete_matching
        return await self._delete("delete_matching", 0, deletions, delete, pattern)

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        keys = self._inner.scan(pattern)
        while (key := await self._attempt("scan", None, _next_or_none, keys)) is not None:
            yield key

    async def flush(self) -> None:
        await self._delete("flush", None, _Deletions(everything=True), self._inner.flush)

    async def lease(self, key: str, token: str, seconds: float) -> bool:
        # False would mean that somebody else has it, and is to be waited for.
        return await self._attempt("lease", True, self._inner.lease, key, token, seconds)

    async def renew(self, key: str, token: str, seconds: float) -> bool:
        return await self._attempt("renew", False, self._inner.renew, key, token, seconds)

    async def fulfil(self, key: str, token: str, value: Value, ex: float | None = None) -> bool:
        return await self._attempt("fulfil", False, self._inner.fulfil, key, token, value, ex)

    async def release(self, key: str, token: str) -> None:
        await self._attempt("release", None, self._inner.release, key, token)

    async def ping(self) -> None:
        if not await self._attempt("ping", False, _succeeds, self._inner.ping):
            raise CacheUnavailableError(f"The cache ({self.name}) is out of reach.")

    async def info(self) -> dict[str, Any]:
        """Describe the inner backend too, unless it is away."""
        nothing: dict[str, Any] = {}
        return await self._attempt("info", nothing, self._inner.info)

    async def _attempt(
        self,
        operation: str,
        default: T,
        call: Callable[[*Args], Awaitable[T]],
        *args: *Args,
    ) -> T:
        if not self._available:
            return default
        outages = self._outages
        started = perf_counter()
        try:
            return await call(*args)
        except CacheError as error:
            self._count(operation, error)
            # If it has failed and recovered since this call began, that is no news.
            if isinstance(error, CacheUnavailableError) and outages == self._outages:
                self._leave_alone(error)
            return default
        finally:
            self._duration_of(operation).observe(perf_counter() - started)

    async def _delete(
        self,
        operation: str,
        default: T,
        deletions: _Deletions,
        call: Callable[[*Args], Awaitable[T]],
        *args: *Args,
    ) -> T:
        """Delete now, or else before the next read: a stale value is worse than none."""
        # While pending ones are replayed, new ones do not queue up behind: it might never end.
        if not (self._available or self._replaying):
            self._pending.add(deletions)
            return default
        started = perf_counter()
        try:
            return await call(*args)
        except (CacheError, asyncio.CancelledError) as error:
            self._pending.add(deletions)
            self._leave_alone(error)
            if not isinstance(error, CacheError):
                raise
            self._count(operation, error)
            return default
        finally:
            self._duration_of(operation).observe(perf_counter() - started)

    def _count(self, operation: str, error: CacheError) -> None:
        ERRORS.labels(self.name, operation).inc()
        if isinstance(error, CacheUnavailableError):
            return  # the outage has a line of its own
        if monotonic() >= self._quiet_until.get(operation, 0):
            self._quiet_until[operation] = monotonic() + WARN_SECONDS
            log.warning("cache_error", backend=self.name, operation=operation, cause=str(error))

    def _leave_alone(self, error: BaseException) -> None:
        if not self._available:
            return
        self._available = False
        self._outages += 1
        self._away_since = monotonic()
        AVAILABLE.labels(self.name).set(0)
        cause = str(error) or type(error).__name__
        log.warning("cache_unavailable", backend=self.name, cause=cause)
        # If it answers, and only a deletion is due, there is nothing to wait for.
        answers = not isinstance(error, CacheUnavailableError)
        self._start_healer(delay=0 if answers else self._retry_seconds)

    def _start_healer(self, *, delay: float) -> None:
        # In a context of its own, it neither logs under the id of the request that met the failure
        # nor keeps alive what that request has in its context.
        self._healer = asyncio.create_task(self._heal(delay), context=Context())
        self._healer.add_done_callback(self._check_healer)

    def _check_healer(self, healer: asyncio.Task[None]) -> None:
        """Go on after a bug in the inner backend, or the cache would be away for ever."""
        if healer is self._healer and not healer.cancelled() and (bug := healer.exception()):
            log.error("cache_retry_failed", backend=self.name, exc_info=bug)
            self._start_healer(delay=self._retry_seconds)

    async def _heal(self, delay: float) -> None:
        while not self._available:
            await asyncio.sleep(delay)
            delay = self._retry_seconds
            try:
                await self._inner.ping()
                await self._replay()
            except CacheError as error:
                self._count("retry", error)
            else:
                self._use_again()

    async def _replay(self) -> None:
        """Return with nothing pending; what could not be carried out stays pending."""
        self._replaying = True
        try:
            while self._pending:
                deletions, self._pending = self._pending, _Deletions()
                try:
                    await deletions.carry_out(self._inner)
                except BaseException:
                    self._pending.add(deletions)
                    raise
        finally:
            self._replaying = False

    def _use_again(self) -> None:
        self._available = True
        self._healer = None
        AVAILABLE.labels(self.name).set(1)
        seconds = round(monotonic() - self._away_since, 3)
        log.info("cache_available", backend=self.name, away_seconds=seconds)

    async def _try_a_last_time(self) -> None:
        try:
            async with asyncio.timeout(LAST_TRY_SECONDS):
                await self._replay()
        except (CacheError, TimeoutError) as error:
            log.warning(
                "cache_deletions_lost",
                backend=self.name,
                number=len(self._pending),
                everything=self._pending.everything,
                cause=str(error) or type(error).__name__,
            )

    async def _close_inner(self) -> None:
        try:
            await self._inner.aclose()
        except CacheError as error:
            self._count("aclose", error)


async def _succeeds(call: Callable[[*Args], Awaitable[None]], *args: *Args) -> bool:
    await call(*args)
    return True


async def _next_or_none(keys: AsyncIterator[str]) -> str | None:
    return await anext(keys, None)
