"""The cache of a process: single-flight, leases and tag versions on top of a backend.

On a miss, `Cache.fetch` calls `_compute_once`. It waits for a computation of the same key in this
process, or starts one. `_compute` acquires the lease on the key, calls the function and stores the
value.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from secrets import token_hex
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError
from src.cache.backends.factory import create_backend
from src.cache.engine.after_commit import has_uncommitted_changes
from src.cache.engine.keys import GLOB, shorten_pattern
from src.cache.engine.policy import CachedValue, Policy
from src.core.config import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

LEASE_SECONDS = 3.0  # if a process dies, its lease blocks other processes for up to this time
WAIT_SECONDS = 30.0  # a caller waits this long for another computation, then computes the value
NESTED_WAIT_SECONDS = 3.0  # the limit for a nested call, if the other computation waits too
RENEW_SECONDS = 0.5  # between renewals of a lease
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.005, 0.05  # between attempts to acquire a lease
TAG_VERSION_TTL_SECONDS = 30 * 24 * 3600.0  # a tagged value is valid for at most this time

# Set while a cached function runs: calls of other cached functions are nested in it.
_parent: ContextVar["Computation | None"] = ContextVar("computation", default=None)


@dataclass(frozen=True, slots=True)
class Lookup(Generic[T]):
    """A call of a cached function, and how to compute its value on a miss."""

    policy: Policy[T]
    key: str
    tags: Sequence[str]
    compute: Callable[[], Awaitable[T]]


class Computed(NamedTuple, Generic[T]):
    """A computed value, which may be None."""

    value: T


class Computation:
    """A computation in this process that other callers can wait for (single-flight)."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.token = token_hex(8)
        self.versions: list[str] | None = None  # tag versions; None until the lease is acquired
        self.is_uncacheable = False  # the value cannot be shared with the other callers
        self.waiting_calls = 0  # nested calls that wait for other computations
        self._result: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def finish(self, payload: bytes | None) -> None:
        """Pass the result to the waiting callers; None if there is none. Only the first call counts."""
        if not self._result.done():
            self._result.set_result(payload)

    def fail(self, error: Exception) -> None:
        if not self._result.done():
            self._result.set_exception(error)
            self._result.exception()  # otherwise asyncio logs that it was never retrieved

    async def wait(self, seconds: float, parent: "Computation | None") -> bytes | None:
        """Return the result, or None after `seconds`. A nested call passes its `parent`."""
        if parent is not None:
            parent.waiting_calls += 1
        try:
            await asyncio.wait([self._result], timeout=seconds)
        finally:
            if parent is not None:
                parent.waiting_calls -= 1
        return self._result.result() if self._result.done() else None


class Cache:
    """The cache of this process; the application's lifespan opens it.

    After an invalidation, the cache never returns a value that was computed from older data:

    - A computation acquires the lease on its key, and then reads the versions of its tags. An
      invalidation ends the lease or deletes the versions.
    - A value is stored only if the computation still has the lease.
    - A cached value is returned only if its tags still have the same versions.
    - A caller checks the lease and the versions before it waits for another computation.
    """

    def __init__(self, backend: CacheBackend, *, ttl: float) -> None:
        self.backend = backend
        self.ttl = ttl
        self._computations: dict[str, Computation] = {}
        self._refreshes: dict[str, asyncio.Task[Any]] = {}
        self._shielded: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Cancel the refreshes, and wait for invalidations and releases of leases."""
        refreshes = [*self._refreshes.values()]
        for task in refreshes:
            task.cancel()
        await asyncio.gather(*refreshes, return_exceptions=True)
        await asyncio.gather(*self._shielded, return_exceptions=True)

    async def get(self, policy: Policy[T], key: str, tags: Sequence[str] = ()) -> T | None:
        """Return the cached value if it is fresh, else None."""
        found = await self._find(policy, key, tags)
        if found is None or not found.is_fresh:
            return None
        policy.hits.inc()
        return found.value

    async def fetch(
        self, policy: Policy[T], key: str, tags: Sequence[str], compute: Callable[[], Awaitable[T]]
    ) -> T:
        """Return the cached value, or else the value that `compute` returns."""
        if has_uncommitted_changes():  # only this transaction may see them
            policy.bypasses.inc()
            return await compute()
        found = await self._find(policy, key, tags)
        if found is None:
            policy.misses.inc()
            return await self._compute_once(Lookup(policy, key, tags, compute))
        if found.is_fresh:
            policy.hits.inc()
        else:
            policy.stale_hits.inc()
            self._refresh(Lookup(policy, key, tags, compute))
        return found.value

    async def invalidate(self, *key_patterns: str, tags: Sequence[str] = ()) -> None:
        """Delete keys, keys that match a pattern, and values with one of the tags."""
        await self._run_shielded(self._delete(key_patterns, tags))

    async def _delete(self, key_patterns: Sequence[str], tags: Sequence[str]) -> None:
        # `@cached` shortens long keys; `CacheBackend.set` does not. Delete both forms.
        names = dict.fromkeys([*key_patterns, *map(shorten_pattern, key_patterns)])
        keys = [name for name in names if not GLOB.search(name)]
        if keys or tags:
            # Values of methods have their key without the object as a tag.
            await self.backend.delete(*keys, *map(tag_key, [*keys, *tags]))
        for name in names:
            if GLOB.search(name):
                await self.backend.delete_matching(name)

    async def _find(
        self, policy: Policy[T], key: str, tags: Sequence[str]
    ) -> CachedValue[T] | None:
        if not tags:  # fast path
            return policy.unpack(await self.backend.get(key), [])
        stored, *versions = await self.backend.get_many(key, *map(tag_key, tags))
        return policy.unpack(stored, versions)

    async def _compute_once(self, lookup: Lookup[T]) -> T:
        """Wait for a current computation of the same key, or compute the value."""
        parent = _parent.get()
        deadline = monotonic() + WAIT_SECONDS
        while (seconds := deadline - monotonic()) > 0:
            computation = self._computations.get(lookup.key)
            if computation is None:
                limit = deadline if parent is None else monotonic() + NESTED_WAIT_SECONDS
                computed = await self._compute(lookup, limit)
                return await lookup.compute() if computed is None else computed.value
            if computation.owner != lookup.policy.owner:
                lookup.policy.warn(computation.owner)
                break
            if not await self._renew_if_current(lookup, computation):
                await self.backend.release_lease(lookup.key, computation.token)
                self._remove(lookup.key, computation)
                continue
            payload = await computation.wait(min(seconds, NESTED_WAIT_SECONDS), parent)
            if payload is not None:
                return lookup.policy.codec.decode(payload)
            # The other computation may wait for the parent of this call: do not wait forever.
            may_deadlock = parent is not None and computation.waiting_calls > 0
            if computation.is_uncacheable or may_deadlock:
                break
        return await lookup.compute()

    async def _compute(self, lookup: Lookup[T], deadline: float) -> Computed[T] | None:
        """Compute and store the value; return None if the lease cannot be acquired in time."""
        computation = self._computations[lookup.key] = Computation(lookup.policy.owner)
        is_stored = False
        try:
            if not await self._acquire_lease(lookup, computation, deadline):
                return None
            found = await self._find(lookup.policy, lookup.key, lookup.tags)
            if found is not None and found.is_fresh:  # another process was faster
                computation.finish(found.payload)
                return Computed(found.value)
            with self._renewed_lease(lookup, computation):
                value = await lookup.compute()
            payload = lookup.policy.codec.encode(value)
            computation.is_uncacheable = payload is None
            computation.finish(payload)
            if payload is not None:
                packed, seconds = lookup.policy.pack(payload, computation.versions or [], self.ttl)
                is_stored = await self.backend.set_if_leased(
                    lookup.key, computation.token, packed, seconds
                )
            return Computed(value)
        except Exception as error:
            computation.fail(error)
            raise
        finally:
            computation.finish(None)
            self._remove(lookup.key, computation)
            if not is_stored:
                await self._run_shielded(self.backend.release_lease(lookup.key, computation.token))

    async def _acquire_lease(
        self, lookup: Lookup[Any], computation: Computation, deadline: float
    ) -> bool:
        """Acquire the lease, then read the tag versions. Return False if the deadline passes."""
        delay = MIN_RETRY_SECONDS
        while not await self.backend.acquire_lease(lookup.key, computation.token, LEASE_SECONDS):
            if monotonic() >= deadline:
                return False
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RETRY_SECONDS)
        computation.versions = await self._read_tag_versions(lookup.tags)
        return computation.versions is not None

    async def _read_tag_versions(self, tags: Sequence[str]) -> list[str] | None:
        """Return the version of each tag; set missing ones. Return None if that fails."""
        if not tags:
            return []
        keys = [tag_key(tag) for tag in tags]
        found = await self.backend.get_many(*keys)
        if None in found:
            for key, version in zip(keys, found, strict=True):
                if version is None:
                    await self.backend.add(key, token_hex(8), ex=TAG_VERSION_TTL_SECONDS)
            found = await self.backend.get_many(*keys)
        versions = [version for version in found if isinstance(version, str)]
        return versions if len(versions) == len(keys) else None

    async def _renew_if_current(self, lookup: Lookup[Any], computation: Computation) -> bool:
        """Renew the lease; return False if the key or a tag was invalidated since the start."""
        if computation.versions is None:  # the function has not been called yet
            return True
        if lookup.tags and await self._read_tag_versions(lookup.tags) != computation.versions:
            return False
        return await self.backend.renew_lease(lookup.key, computation.token, LEASE_SECONDS)

    @contextmanager
    def _renewed_lease(self, lookup: Lookup[Any], computation: Computation) -> Generator[None]:
        """Renew the lease in the background while the block runs, until an invalidation."""

        async def renew() -> None:
            with suppress(CacheError):  # the lease expires
                is_current = True
                while is_current:
                    await asyncio.sleep(RENEW_SECONDS)
                    is_current = await self._renew_if_current(lookup, computation)
                await self.backend.release_lease(lookup.key, computation.token)

        parent = _parent.get()
        _parent.set(computation)
        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            _parent.set(parent)

    def _refresh(self, lookup: Lookup[Any]) -> None:
        """Compute the value in the background, unless a computation is already running."""

        def on_done(task: asyncio.Task[Any]) -> None:
            del self._refreshes[lookup.key]
            if not task.cancelled() and (error := task.exception()):
                log.error("cache_refresh_failed", key=lookup.key, exc_info=error)

        if lookup.key not in self._refreshes and lookup.key not in self._computations:
            task = asyncio.create_task(self._compute(lookup, deadline=0))
            self._refreshes[lookup.key] = task
            task.add_done_callback(on_done)

    def _remove(self, key: str, computation: Computation) -> None:
        if self._computations.get(key) is computation:
            del self._computations[key]

    async def _run_shielded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end, even if the caller is cancelled."""
        task = asyncio.create_task(work)
        self._shielded.add(task)
        task.add_done_callback(self._shielded.discard)
        await asyncio.shield(task)


def tag_key(tag: str) -> str:
    return f"tag:{tag}"


_current: ContextVar[Cache | None] = ContextVar("cache", default=None)


def current_cache() -> Cache | None:
    """Return the cache that `@cached` uses; None if no cache is open, as in a script."""
    return _current.get()


@contextmanager
def use_cache(cache: Cache) -> Generator[Cache]:
    """Use this cache for `@cached` and invalidation, in the block and in asyncio tasks it starts."""
    before = _current.get()
    _current.set(cache)
    try:
        yield cache
    finally:
        # Not `ContextVar.reset`: a generator may exit in a different context.
        _current.set(before)


@asynccontextmanager
async def open_cache(settings: Settings) -> AsyncGenerator[Cache]:
    """Open the backend from the settings, and use it in the block."""
    async with create_backend(settings) as backend:
        with suppress(CacheUnavailableError):  # log an outage at startup, not at the first request
            await backend.ping()
        cache = Cache(backend, ttl=settings.CACHE_TTL_SECONDS)
        try:
            with use_cache(cache):
                yield cache
        finally:
            await cache.aclose()
