"""Reading through a cache: concurrent misses compute once, and nothing outdated is stored.

A miss goes from `Cache.fetch` to `_compute_once`, which waits for a computation in this process or
starts one; `_compute` acquires the lease on the key, calls the function and stores the value.
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
from src.cache.engine.policy import Found, Policy
from src.core.config import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

LEASE_SECONDS = 3.0  # how long others wait for a process that died while it computed
WAIT_SECONDS = 30.0  # how long for one that is alive, before computing without it
NESTED_SECONDS = 3.0  # how long a nested call waits for one that itself waits
RENEW_SECONDS = 0.5  # between renewals of a lease
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.05  # seconds between attempts to acquire a lease
VERSION_SECONDS = 30 * 24 * 3600.0  # entries do not outlive the versions of their tags

# The computation that this call is part of: then the call is nested.
_enclosing: ContextVar["Computation | None"] = ContextVar("computation", default=None)


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A call that the cache may answer."""

    policy: Policy[T]
    key: str
    tags: Sequence[str]
    call: Callable[[], Awaitable[T]]


class Computed(NamedTuple, Generic[T]):
    value: T


class Computation:
    """A computation in this process, which other callers of it may wait for."""

    def __init__(self) -> None:
        self.token = token_hex(8)
        self.versions: list[str] | None = None  # of its tags; None until it has the lease
        self.is_private = False  # the value cannot be shared
        self.waits = 0  # how many of its nested calls wait for other computations
        self._result: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def finish(self, payload: bytes | None) -> None:
        """Give the result to those who wait, None if there is none. Only the first call counts."""
        if not self._result.done():
            self._result.set_result(payload)

    def fail(self, error: Exception) -> None:
        if not self._result.done():
            self._result.set_exception(error)
            self._result.exception()  # asyncio logs an error that has never been looked at

    async def wait(self, seconds: float, enclosing: "Computation | None") -> bytes | None:
        """Return the result, None if there is none yet; `enclosing` is who waits, if nested."""
        if enclosing is not None:
            enclosing.waits += 1
        try:
            await asyncio.wait([self._result], timeout=seconds)
        finally:
            if enclosing is not None:
                enclosing.waits -= 1
        return self._result.result() if self._result.done() else None


class Cache:
    """The process's cache, opened by the lifespan.

    A computation acquires the lease on its key, and then reads the versions of its tags. Its value
    is stored only if the lease is still held, and counts only while each tag has that version; so
    what was read before an invalidation is never returned after it. Nor is it shared: a caller
    checks the same before it waits for another's computation.
    """

    def __init__(self, backend: CacheBackend, *, ttl: float) -> None:
        self.backend = backend
        self.ttl = ttl
        self._computations: dict[str, Computation] = {}
        self._refreshes: dict[str, asyncio.Task[Any]] = {}
        self._unfinished: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Cancel refreshes, and finish what must be done."""
        refreshes = [*self._refreshes.values()]
        for task in refreshes:
            task.cancel()
        await asyncio.gather(*refreshes, return_exceptions=True)
        await asyncio.gather(*self._unfinished, return_exceptions=True)

    async def get(self, policy: Policy[T], key: str, tags: Sequence[str] = ()) -> T | None:
        """Return the cached value if it is fresh, else None."""
        found = await self._find(policy, key, tags)
        if found is None or not found.is_fresh:
            return None
        policy.hits.inc()
        return found.value

    async def fetch(
        self, policy: Policy[T], key: str, tags: Sequence[str], call: Callable[[], Awaitable[T]]
    ) -> T:
        """Return the key's value from the cache, or else from `call`, which runs at most once."""
        if has_uncommitted_changes():  # which others must not see, and the cache does not know
            policy.bypasses.inc()
            return await call()
        found = await self._find(policy, key, tags)
        if found is None:
            policy.misses.inc()
            return await self._compute_once(Read(policy, key, tags, call))
        if found.is_fresh:
            policy.hits.inc()
        else:
            policy.stale_hits.inc()
            self._refresh(Read(policy, key, tags, call))
        return found.value

    async def invalidate(self, *key_patterns: str, tags: Sequence[str] = ()) -> None:
        """Delete keys, what matches patterns, and what carries tags."""
        await self._finish(self._delete(key_patterns, tags))

    async def _delete(self, key_patterns: Sequence[str], tags: Sequence[str]) -> None:
        # Both: what was set directly has its whole key.
        names = dict.fromkeys([*key_patterns, *map(shorten_pattern, key_patterns)])
        keys = [name for name in names if not GLOB.search(name)]
        if keys or tags:
            await self.backend.delete(*keys, *map(_tag_key, tags))
        for name in names:
            if GLOB.search(name):
                await self.backend.delete_matching(name)

    async def _find(self, policy: Policy[T], key: str, tags: Sequence[str]) -> Found[T] | None:
        if not tags:  # shorter, for this is what most calls do
            return policy.unpack(await self.backend.get(key), [])
        stored, *versions = await self.backend.get_many(key, *map(_tag_key, tags))
        return policy.unpack(stored, versions)

    async def _compute_once(self, read: Read[T]) -> T:
        """Compute the value, or wait for a computation that has read nothing outdated."""
        enclosing = _enclosing.get()
        deadline = monotonic() + WAIT_SECONDS
        while (seconds := deadline - monotonic()) > 0:
            computation = self._computations.get(read.key)
            if computation is None:
                limit = deadline if enclosing is None else monotonic() + NESTED_SECONDS
                computed = await self._compute(read, limit)
                return await read.call() if computed is None else computed.value
            if not await self._is_current(read, computation):
                await self.backend.release_lease(read.key, computation.token)
                self._forget(read.key, computation)
                continue
            payload = await computation.wait(min(seconds, NESTED_SECONDS), enclosing)
            if payload is not None:
                with suppress(ValueError):  # another function's value, under the same key
                    return read.policy.codec.decode(payload)
            # It waits too: perhaps for the one that encloses this call, and so for ever.
            may_deadlock = enclosing is not None and computation.waits > 0
            if payload is not None or computation.is_private or may_deadlock:
                break
        return await read.call()

    async def _compute(self, read: Read[T], deadline: float) -> Computed[T] | None:
        """Compute the value with the lease on its key, and store it; None without the lease."""
        computation = self._computations[read.key] = Computation()
        is_stored = False
        try:
            if not await self._acquire_lease(read, computation, deadline):
                return None
            found = await self._find(read.policy, read.key, read.tags)
            if found is not None and found.is_fresh:  # another process was faster
                computation.finish(found.payload)
                return Computed(found.value)
            with self._renewed_lease(read, computation):
                value = await read.call()
            payload = read.policy.codec.encode(value)
            computation.is_private = payload is None
            computation.finish(payload)
            if payload is not None:
                packed, seconds = read.policy.pack(payload, computation.versions or [], self.ttl)
                is_stored = await self.backend.set_if_leased(
                    read.key, computation.token, packed, seconds
                )
            return Computed(value)
        except Exception as error:
            computation.fail(error)
            raise
        finally:
            computation.finish(None)
            self._forget(read.key, computation)
            if not is_stored:
                await self._finish(self.backend.release_lease(read.key, computation.token))

    async def _acquire_lease(
        self, read: Read[Any], computation: Computation, deadline: float
    ) -> bool:
        """Acquire the lease, and then read the versions of the tags; False if it takes too long."""
        pause = FIRST_PAUSE
        while not await self.backend.acquire_lease(read.key, computation.token, LEASE_SECONDS):
            if monotonic() >= deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        computation.versions = await self._versions(read.tags)
        return computation.versions is not None

    async def _versions(self, tags: Sequence[str]) -> list[str] | None:
        """Return the version of each tag, and set one where there is none; None if that fails."""
        if not tags:
            return []
        keys = [_tag_key(tag) for tag in tags]
        found = await self.backend.get_many(*keys)
        if None in found:
            for key, version in zip(keys, found, strict=True):
                if version is None:
                    await self.backend.add(key, token_hex(8), ex=VERSION_SECONDS)
            found = await self.backend.get_many(*keys)
        versions = [version for version in found if isinstance(version, str)]
        return versions if len(versions) == len(keys) else None

    async def _is_current(self, read: Read[Any], computation: Computation) -> bool:
        """Whether nothing that it may have read has been invalidated; renew its lease."""
        if computation.versions is None:  # it has read nothing
            return True
        if read.tags and await self._versions(read.tags) != computation.versions:
            return False
        return await self.backend.renew_lease(read.key, computation.token, LEASE_SECONDS)

    @contextmanager
    def _renewed_lease(self, read: Read[Any], computation: Computation) -> Generator[None]:
        """Renew the lease while the block runs, until what it may have read is invalidated."""

        async def renew() -> None:
            with suppress(CacheError):  # the lease expires then
                is_current = True
                while is_current:
                    await asyncio.sleep(RENEW_SECONDS)
                    is_current = await self._is_current(read, computation)
                await self.backend.release_lease(read.key, computation.token)

        enclosing = _enclosing.get()
        _enclosing.set(computation)
        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            _enclosing.set(enclosing)

    def _refresh(self, read: Read[Any]) -> None:
        """Compute the value in the background, unless that is under way."""

        def check(task: asyncio.Task[Any]) -> None:
            del self._refreshes[read.key]
            if not task.cancelled() and (error := task.exception()):
                log.error("cache_refresh_failed", key=read.key, exc_info=error)

        if read.key not in self._refreshes and read.key not in self._computations:
            task = asyncio.create_task(self._compute(read, deadline=0))
            self._refreshes[read.key] = task
            task.add_done_callback(check)

    def _forget(self, key: str, computation: Computation) -> None:
        if self._computations.get(key) is computation:
            del self._computations[key]

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work to its end, even if the caller is cancelled meanwhile."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        await asyncio.shield(task)


def _tag_key(tag: str) -> str:
    return f"tag:{tag}"


_current: ContextVar[Cache | None] = ContextVar("cache", default=None)


def current_cache() -> Cache | None:
    """Return the cache that `@cached` uses here; None outside requests and `open_cache()`."""
    return _current.get()


@contextmanager
def use_cache(cache: Cache) -> Generator[Cache]:
    """Let `@cached` and the like use this cache, in the block and the tasks that it starts."""
    before = _current.get()
    _current.set(cache)
    try:
        yield cache
    finally:
        # Not `reset`: a generator may end in another context than it started in.
        _current.set(before)


@asynccontextmanager
async def open_cache(settings: Settings) -> AsyncGenerator[Cache]:
    """Open the backend that the settings name; the block uses it."""
    async with create_backend(settings) as backend:
        with suppress(CacheUnavailableError):  # better to log it now than at the first request
            await backend.ping()
        cache = Cache(backend, ttl=settings.CACHE_TTL_SECONDS)
        try:
            with use_cache(cache):
                yield cache
        finally:
            await cache.aclose()
