"""In-memory cache backend: each process has a separate cache."""

import math
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from src.cache.backends.base import CacheBackend, Value
from src.cache.engine.glob import compile_pattern

# Memory per entry in addition to the key and the value, as measured with tracemalloc: the tuple, its
# numbers and the slot in the dictionary.
ENTRY_OVERHEAD_BYTES = 200

_Entry = tuple[Value, float, int]  # value, deadline, size in bytes


class MemoryBackend(CacheBackend):
    """Evicts the least recently used entries above `max_entries` or `max_bytes`.

    A single value larger than `max_bytes` is not stored. Use a backend on one event loop only:
    methods are atomic because they never suspend.
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
        self._leases: dict[str, tuple[str, float]] = {}  # token and deadline by key

    async def get(self, key: str) -> Value | None:
        return self._get(key)

    async def get_many(self, *keys: str) -> list[Value | None]:
        return [self._get(key) for key in keys]

    def _get(self, key: str) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, deadline, _ = entry
        if deadline <= self._clock():
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def set(self, key: str, value: Value, ex: float | None = None) -> None:
        self._set(key, value, self._deadline(ex))

    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        deadline = self._deadline(ex)
        is_new = not self._is_live(key)
        if is_new:
            self._set(key, value, deadline)
        return is_new

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
        self._leases.clear()

    async def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        now = self._clock()
        if key in self._leases and self._leases[key][1] > now:
            return False
        self._leases[key] = token, now + seconds
        return True

    async def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        is_held = self._end_lease(key, token)
        if is_held:
            self._leases[key] = token, self._clock() + seconds
        return is_held

    async def set_if_leased(
        self, key: str, token: str, value: Value, ex: float | None = None
    ) -> bool:
        deadline = self._deadline(ex)
        is_held = self._end_lease(key, token)
        if is_held:
            self._set(key, value, deadline)
        return is_held

    async def release_lease(self, key: str, token: str) -> None:
        self._end_lease(key, token)

    async def ping(self) -> None:
        """Do nothing: memory is always available."""

    async def info(self) -> dict[str, Any]:
        return {
            "entries": sum(map(self._is_live, self._entries)),
            "bytes": self._bytes,
            "max_entries": self._max_entries,
            "max_bytes": self._max_bytes,
        }

    def _deadline(self, ex: float | None) -> float:
        seconds = self.lifetime(ex)
        return math.inf if seconds is None else self._clock() + seconds

    def _set(self, key: str, value: Value, deadline: float) -> None:
        size = _size(key) + _size(value) + ENTRY_OVERHEAD_BYTES
        self._remove(key)
        if size > self._max_bytes:
            return
        self._entries[key] = value, deadline, size
        self._bytes += size
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))

    def _is_live(self, key: str) -> bool:
        return key in self._entries and self._entries[key][1] > self._clock()

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[2]

    def _delete(self, keys: Iterable[str]) -> int:
        """Delete entries and leases. Return how many of the entries had not expired."""
        deleted = 0
        for key in keys:
            deleted += self._is_live(key)
            self._remove(key)
            self._leases.pop(key, None)
        return deleted

    def _end_lease(self, key: str, token: str) -> bool:
        """End the lease if it belongs to the token. Return whether it was still valid."""
        held = self._leases.get(key)
        if held is None or held[0] != token:
            return False
        del self._leases[key]
        return held[1] > self._clock()


def _size(text: Value) -> int:
    """Return the size in memory. Raises ValueError for lone surrogates, as in other backends."""
    if isinstance(text, str) and not text.isascii():
        text.encode()
    return sys.getsizeof(text)
