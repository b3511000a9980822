"""The cache in this process: the fastest there is, and each process has one of its own."""

import heapq
import math
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from src.cache.backends.base import CacheBackend, Value
from src.cache.backends.integers import add_to
from src.cache.engine.glob import compile_pattern

# What an entry takes beside its key and value: the tuple, its numbers, and its places in the
# dictionary and in the heap; as measured with tracemalloc.
ENTRY_OVERHEAD_BYTES = 300

# A write drops at most so many that are due, for one must not wait while thousands are dropped;
# but more than the one that it may add.
_DUE_PER_WRITE = 2
_SMALLEST_SWEEP = 64

_Entry = tuple[Value, float, int]  # a value, its deadline, and the bytes that it is counted with


class MemoryBackend(CacheBackend):
    """Bounded in entries and in bytes: the least recently used go first, after expired ones.

    A value that is alone bigger than `max_bytes` is not kept. For use on one event loop: nothing
    here awaits anything that waits, so every method is atomic.
    """

    name = "memory"

    def __init__(
        self,
        *,
        ttl: float | None = None,
        max_entries: int = 10_000,
        max_bytes: int = 64 * 2**20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(ttl=ttl)
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._due: list[tuple[float, str]] = []  # a heap; what was replaced is still in it
        self._leases = _Leases(clock)

    async def get(self, key: str) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, deadline, _ = entry
        if deadline <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def get_many(self, *keys: str) -> list[Value | None]:
        return [await self.get(key) for key in keys]

    async def set(self, key: str, value: Value, ex: float | None = None) -> None:
        self._write(key, value, self._deadline(ex))

    async def set_many(self, values: Mapping[str, Value], ex: float | None = None) -> None:
        deadline = self._deadline(ex)
        for key, value in values.items():
            self._write(key, value, deadline)

    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        deadline = self._deadline(ex)
        if await self.get(key) is not None:
            return False
        self._write(key, value, deadline)
        return True

    async def increment(self, key: str, by: int = 1, ex: float | None = None) -> int:
        deadline = self._deadline(ex)
        value = await self.get(key)
        if value is not None:
            deadline = self._entries[key][1]
        total = add_to(value, by)
        self._write(key, str(total), deadline)
        return total

    async def delete(self, *keys: str) -> int:
        return self._delete(dict.fromkeys(keys))

    async def delete_matching(self, pattern: str) -> int:
        matches = compile_pattern(pattern).fullmatch
        return self._delete([key for key in {*self._entries, *self._leases} if matches(key)])

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        matches = compile_pattern(pattern).fullmatch
        for key in list(self._entries):
            if matches(key) and self._is_live(key):
                yield key

    async def flush(self) -> None:
        self._entries.clear()
        self._bytes = 0
        self._due.clear()
        self._leases.clear()

    async def lease(self, key: str, token: str, seconds: float) -> bool:
        return self._leases.take(key, token, seconds)

    async def renew(self, key: str, token: str, seconds: float) -> bool:
        return self._leases.end(key, token) and self._leases.take(key, token, seconds)

    async def fulfil(self, key: str, token: str, value: Value, ex: float | None = None) -> bool:
        deadline = self._deadline(ex)
        if not self._leases.end(key, token):
            return False
        self._write(key, value, deadline)
        return True

    async def release(self, key: str, token: str) -> None:
        self._leases.end(key, token)

    async def ping(self) -> None:
        """Do nothing: memory is always there."""

    async def info(self) -> dict[str, Any]:
        return {
            "entries": len(self._entries),
            "bytes": self._bytes,
            "max_entries": self._max_entries,
            "max_bytes": self._max_bytes,
        }

    def _deadline(self, ex: float | None) -> float:
        seconds = self.lifetime(ex)
        return math.inf if seconds is None else self._clock() + seconds

    def _is_live(self, key: str) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry[1] > self._clock()

    def _write(self, key: str, value: Value, deadline: float) -> None:
        size = _size(key) + _size(value) + ENTRY_OVERHEAD_BYTES
        self._drop(key)
        if size > self._max_bytes:
            return
        self._entries[key] = value, deadline, size
        self._bytes += size
        if deadline < math.inf:
            self._remember(deadline, key)
        for _ in range(_DUE_PER_WRITE):
            if not self._drop_due():
                break
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            if not self._drop_due():
                self._drop(next(iter(self._entries)))

    def _remember(self, deadline: float, key: str) -> None:
        heapq.heappush(self._due, (deadline, key))
        if len(self._due) > 2 * len(self._entries) + _SMALLEST_SWEEP:
            self._due = [
                (deadline, key)
                for key, (_, deadline, _) in self._entries.items()
                if deadline < math.inf
            ]
            heapq.heapify(self._due)

    def _drop_due(self) -> bool:
        """Take one off the heap that is due, or was replaced; False if the next one is neither."""
        if not self._due:
            return False
        deadline, key = self._due[0]
        entry = self._entries.get(key)
        replaced = entry is None or entry[1] != deadline
        if not replaced and deadline > self._clock():
            return False
        heapq.heappop(self._due)
        if not replaced:
            self._drop(key)
        return True

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[2]

    def _delete(self, keys: Iterable[str]) -> int:
        deleted = 0
        for key in keys:
            deleted += self._is_live(key)
            self._drop(key)
            self._leases.discard(key)
        return deleted


class _Leases:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._sweep_at = _SMALLEST_SWEEP

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def take(self, key: str, token: str, seconds: float) -> bool:
        now = self._clock()
        held = self._held.get(key)
        if held is not None and held[1] > now:
            return False
        self._held[key] = token, now + seconds
        if len(self._held) > self._sweep_at:
            self._sweep(now)
        return True

    def end(self, key: str, token: str) -> bool:
        """End a lease, and tell whether it was held until now."""
        held = self._held.get(key)
        if held is None or held[0] != token:
            return False
        del self._held[key]
        return held[1] > self._clock()

    def discard(self, key: str) -> None:
        self._held.pop(key, None)

    def clear(self) -> None:
        self._held.clear()

    def _sweep(self, now: float) -> None:
        """Drop what expired; seldom enough to cost each `take` next to nothing."""
        self._held = {key: lease for key, lease in self._held.items() if lease[1] > now}
        self._sweep_at = max(2 * len(self._held), _SMALLEST_SWEEP)


def _size(text: Value) -> int:
    """Return what it takes in memory.

    Raises ValueError for lone surrogates, as backends do that must encode.
    """
    if isinstance(text, str) and not text.isascii():
        text.encode()
    return sys.getsizeof(text)
