"""Reading through a cache: each key is computed once, and nothing outdated is stored or shared."""

import asyncio
import random
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from secrets import token_hex
from time import monotonic, time
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError, Value
from src.cache.backends.factory import create_backend
from src.cache.engine.after_commit import finish_callbacks, has_uncommitted_changes
from src.cache.engine.codec import Codec
from src.cache.engine.entry import Entry, pack, unpack
from src.cache.engine.keys import GLOB, shorten_pattern
from src.cache.engine.metrics import REQUESTS
from src.core.config import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

LEASE_SECONDS = 3.0  # how long others wait for a process that died while it computed
WAIT_SECONDS = 30.0  # how long for one that is alive, before computing without it
RENEW_SECONDS = 0.5  # between looks whether a lease is still held, and worth it
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.05  # seconds between looks at what another process does
VERSION_SECONDS = 30 * 24 * 3600.0  # entries do not outlive the versions of their tags


class Policy(Generic[T]):
    """How the values of one function, or the answers of one endpoint, are kept. In seconds.

    A value lives for `ttl`, less a random part of up to `jitter` of it, so that what was stored
    together does not expire together. For `stale` seconds more it is still given out, while it is
    computed anew.

    Raises ValueError.
    """

    def __init__(
        self,
        name: str,
        codec: Codec[T],
        *,
        ttl: float | None = None,
        stale: float = 0,
        jitter: float = 0.1,
    ) -> None:
        if (ttl is not None and ttl <= 0) or stale < 0 or not 0 <= jitter < 1:
            raise ValueError(f"{name}: ttl must be above 0, stale not below, jitter from 0 to 1")
        self.name = name
        self.codec = codec
        self.ttl = ttl
        self.stale = stale
        self.jitter = jitter
        # Looked up once: it costs more than counting.
        self.hits = REQUESTS.labels(name, "hit")
        self.stale_hits = REQUESTS.labels(name, "stale")
        self.misses = REQUESTS.labels(name, "miss")
        self.bypasses = REQUESTS.labels(name, "bypass")

    def pack(self, payload: bytes, versions: list[str], default_ttl: float) -> tuple[bytes, float]:
        """Return what to store, and for how long."""
        ttl = (self.ttl or default_ttl) * (1 - random.random() * self.jitter)  # noqa: S311 - no secret
        entry = Entry(payload, versions, time() + ttl if self.stale else 0)
        return pack(entry), ttl + self.stale


class Flight:
    """A computation under way in this process, which others may wait for.

    It takes off once it has the lease on its key; until then it has read nothing.
    """

    def __init__(self) -> None:
        self.token = token_hex(8)
        self.versions: list[str] | None = None  # of its tags, as it took off
        self.is_private = False  # what it computes cannot be handed over
        self.blocked_by: list[Flight] = []
        self._landed: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def land(self, payload: bytes | None) -> None:
        """Hand over what was computed, None if it was not. Only the first time counts."""
        if not self._landed.done():
            self._landed.set_result(payload)

    def fail(self, error: Exception) -> None:
        if not self._landed.done():
            self._landed.set_exception(error)
            self._landed.exception()  # asyncio complains of errors that nobody has looked at

    async def wait(self, seconds: float) -> bytes | None:
        """Let the computations that this call is part of be blocked by the flight, until it lands."""
        led = _led.get()
        for flight in led:
            flight.blocked_by.append(self)
        try:
            await asyncio.wait([self._landed], timeout=seconds)
        finally:
            for flight in led:
                flight.blocked_by.remove(self)
        return self._landed.result() if self._landed.done() else None

    def waits_for(self, flights: Collection["Flight"]) -> bool:
        return self in flights or any(each.waits_for(flights) for each in self.blocked_by)


# The flights whose computations this call is part of.
_led: ContextVar[tuple[Flight, ...]] = ContextVar("led_flights", default=())


class Cache:
    """The process's cache, opened by the lifespan.

    Whoever computes a value first takes the lease on its key, and then reads the versions of its
    tags. The value is stored only if the lease was not ended meanwhile, and counts only while each
    tag has the version that it had; so what was read before a change is never given out after it.
    Nor is it shared: who comes while another one computes makes sure of the same before waiting.
    """

    def __init__(self, backend: CacheBackend, *, ttl: float) -> None:
        self.backend = backend
        self.ttl = ttl
        self._flights: dict[str, Flight] = {}
        self._refreshes: set[asyncio.Task[None]] = set()
        self._releases: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Give up what is computed in the background."""
        for task in self._refreshes:
            task.cancel()
        await asyncio.gather(*self._refreshes, return_exceptions=True)
        await asyncio.gather(*self._releases, return_exceptions=True)

    async def get(self, policy: Policy[T], key: str, tags: Sequence[str] = ()) -> T | None:
        """Return what is stored, and fresh; or None."""
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
        if tags:
            stored, *versions = await self.backend.get_many(key, *map(_tag_key, tags))
        else:  # shorter, for this is what most calls do
            stored, versions = await self.backend.get(key), []
        found = _read(policy, stored, versions)
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
        """Forget keys, what matches patterns, and what carries tags."""
        # Both: what was set directly has its whole key.
        names = dict.fromkeys([*key_patterns, *map(shorten_pattern, key_patterns)])
        keys = [name for name in names if not GLOB.search(name)]
        if keys or tags:
            await self.backend.delete(*keys, *map(_tag_key, tags))
        for name in names:
            if GLOB.search(name):
                await self.backend.delete_matching(name)

    async def _find(self, policy: Policy[T], key: str, tags: Sequence[str]) -> "Found[T] | None":
        stored, *versions = await self.backend.get_many(key, *map(_tag_key, tags))
        return _read(policy, stored, versions)

    async def _compute_once(self, read: "Read[T]") -> T:
        """Compute the value, or wait for somebody in this process who already does."""
        deadline = monotonic() + WAIT_SECONDS
        while (left := deadline - monotonic()) > 0:
            flight = self._flights.get(read.key)
            if flight is None:
                return await self._lead(read, deadline)
            if not await self._is_current(flight, read):
                await self.backend.release(read.key, flight.token)
                self._forget(read.key, flight)
                continue
            if flight.waits_for(_led.get()):
                break  # for us, as we would for it
            payload = await flight.wait(left)
            if payload is not None:
                with suppress(ValueError):  # another function's value, under the same key
                    return read.policy.codec.decode(payload)
            if payload is not None or flight.is_private:
                break
        return await read.call()

    async def _is_current(self, flight: Flight, read: "Read[Any]") -> bool:
        """Whether nothing that the flight may have read has been invalidated; prolong its lease."""
        if flight.versions is None:  # it has not taken off
            return True
        if read.tags and await self._versions(read.tags) != flight.versions:
            return False
        return await self.backend.renew(read.key, flight.token, LEASE_SECONDS)

    async def _versions(self, tags: Sequence[str]) -> list[str] | None:
        """Return the version of each tag, giving one to those that have none; None if that fails."""
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

    async def _lead(self, read: "Read[T]", deadline: float) -> T:
        """Compute for all, unless another process does: then wait for that."""
        flight = self._flights[read.key] = Flight()
        if _led.get():  # a computation in another process might wait for the one we are part of
            deadline = min(deadline, monotonic() + LEASE_SECONDS)
        found = await self._fly(read, flight, deadline)
        return await read.call() if found is None else found.value

    async def _fly(self, read: "Read[T]", flight: Flight, deadline: float) -> "Computed[T] | None":
        """Return None if the lease was not to be had."""
        try:
            if await self._take_off(read, flight, deadline):
                return Computed(await self._compute(read, flight))
        except asyncio.CancelledError:
            # In a task of its own, for this one may be cancelled again.
            _start(self.backend.release(read.key, flight.token), self._releases)
            raise
        finally:
            flight.land(None)
            self._forget(read.key, flight)
        return None

    async def _take_off(self, read: "Read[Any]", flight: Flight, deadline: float) -> bool:
        """Return whether the lease was to be had in time."""
        pause = FIRST_PAUSE
        while not await self.backend.lease(read.key, flight.token, LEASE_SECONDS):
            if not self.backend.available or monotonic() >= deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        flight.versions = await self._versions(read.tags)
        if flight.versions is None:
            await self.backend.release(read.key, flight.token)
        return flight.versions is not None

    async def _compute(self, read: "Read[T]", flight: Flight) -> T:
        stored = False
        try:
            found = await self._find(read.policy, read.key, read.tags)
            if found is not None and found.is_fresh:  # somebody else was faster
                flight.land(found.payload)
                value = found.value
            else:
                async with self._under_way(read, flight):
                    value = await read.call()
                stored = await self._store(read, flight, value)
        except Exception as error:
            flight.fail(error)
            await self.backend.release(read.key, flight.token)
            raise
        if not stored:
            await self.backend.release(read.key, flight.token)
        return value

    async def _store(self, read: "Read[T]", flight: Flight, value: T) -> bool:
        payload = read.policy.codec.encode(value)
        if payload is None:
            flight.is_private = True
            return False
        # Whoever waits began to before anything was invalidated, or would not.
        flight.land(payload)
        packed, seconds = read.policy.pack(payload, flight.versions or [], self.ttl)
        return await self.backend.fulfil(read.key, flight.token, packed, seconds)

    @asynccontextmanager
    async def _under_way(self, read: "Read[Any]", flight: Flight) -> AsyncGenerator[None]:
        """Hold on to the lease for as long as the block takes, and nothing is invalidated."""
        led = _led.get()
        _led.set((*led, flight))
        task = asyncio.create_task(self._hold(read, flight))
        try:
            yield
        finally:
            task.cancel()
            _led.set(led)

    async def _hold(self, read: "Read[Any]", flight: Flight) -> None:
        with suppress(CacheError):  # the lease expires then
            is_current = True
            while is_current:
                await asyncio.sleep(RENEW_SECONDS)
                is_current = await self._is_current(flight, read)
            await self.backend.release(read.key, flight.token)

    def _refresh(self, read: "Read[Any]") -> None:
        """Compute anew in the background, unless somebody does already."""
        if read.key not in self._flights:
            flight = self._flights[read.key] = Flight()
            _start(self._refreshed(read, flight), self._refreshes)

    async def _refreshed(self, read: "Read[Any]", flight: Flight) -> None:
        try:
            await self._fly(read, flight, deadline=0)
        except Exception:
            log.exception("refresh_failed", key=read.key)

    def _forget(self, key: str, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A call that the cache may answer."""

    policy: Policy[T]
    key: str
    tags: Sequence[str]
    call: Callable[[], Awaitable[T]]


class Computed(NamedTuple, Generic[T]):
    value: T


class Found(NamedTuple, Generic[T]):
    value: T
    payload: bytes
    is_fresh: bool


def _read(policy: Policy[T], stored: Value | None, versions: list[Value | None]) -> Found[T] | None:
    """Return what is stored, unless its tags have other versions by now."""
    entry = unpack(stored)
    if entry is None or entry.versions != versions:
        return None
    try:
        return Found(policy.codec.decode(entry.payload), entry.payload, entry.is_fresh())
    except ValueError:  # another release of the service made it
        return None


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
        # Not `reset`: a generator may end in another context than it began in.
        _current.set(before)


@asynccontextmanager
async def open_cache(settings: Settings) -> AsyncGenerator[Cache]:
    """Open the backend that the settings name; the block uses it."""
    async with create_backend(settings) as backend:
        with suppress(CacheUnavailableError):  # better to be told now than at the first request
            await backend.ping()
        cache = Cache(backend, ttl=settings.CACHE_TTL_SECONDS)
        try:
            with use_cache(cache):
                yield cache
        finally:
            await finish_callbacks()
            await cache.aclose()
