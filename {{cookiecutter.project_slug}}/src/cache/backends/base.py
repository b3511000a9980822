"""The interface of all cache backends, and their errors."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Self

from src.core.rate_limits import Counted

Value = str | bytes


class CacheError(Exception):
    """One operation failed; the message explains why."""


class CacheUnavailableError(CacheError):
    """The backend is unavailable: every operation fails at the moment."""


class CacheBackend(ABC):
    r"""Stores `str` and `bytes` under `str` keys in its namespace. Values may disappear at any time.

    `ex` is the TTL in seconds, and may be a fraction. Its default is the `ttl` of the backend; if
    that is None too, the value does not expire. A pattern may contain `*`, `?`, `[abc]` and `[^a]`;
    write `\\` before one of these characters to match the character itself.

    Every method may raise CacheError, and ValueError if `ex` is not positive.

    A lease is the right to compute the value of one key. One caller at a time has it, until it
    expires. Deleting a key by any method also ends the lease on it. A value that was computed
    before the deletion is therefore not stored after it. (Nishtala et al., "Scaling Memcache at
    Facebook", NSDI 2013, section 3.2.1.)
    """

    name: str

    def __init__(self, *, ttl: float | None = None) -> None:
        self.ttl = ttl

    def lifetime(self, ex: float | None) -> float | None:
        """Return the TTL in seconds of a value set with `ex`; None if it does not expire."""
        if ex is None:
            return self.ttl
        if not ex > 0:  # also true for NaN
            raise ValueError(f"The TTL `ex` of a cached value must be positive, not {ex}.")
        return ex

    @property
    def available(self) -> bool:
        """False while the circuit breaker of the backend is not closed."""
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:  # noqa: B027 - not every backend has something to close
        """Close connections and files. The backend cannot be used after that."""

    @abstractmethod
    async def get(self, key: str) -> Value | None: ...

    @abstractmethod
    async def get_many(self, *keys: str) -> list[Value | None]:
        """Return the values in the order of the keys; None for each missing value."""

    @abstractmethod
    async def set(self, key: str, value: Value, ex: float | None = None) -> None: ...

    @abstractmethod
    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        """Set the value if the key has none. Return whether it was set."""

    @abstractmethod
    async def delete(self, *keys: str) -> int:
        """Return how many of the keys had a value."""

    @abstractmethod
    async def delete_matching(self, pattern: str) -> int:
        """Delete the keys that match the pattern. Return how many of them had a value."""

    @abstractmethod
    def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        """Yield each key that matches the pattern once, in no particular order.

        A key that is set or deleted during the scan may be missing or included.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Delete all values and leases in the namespace, and nothing else."""

    @abstractmethod
    async def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        """Acquire the lease on a key. Return False if the lease belongs to another token."""

    @abstractmethod
    async def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        """Extend the lease. Return False if it no longer belongs to this token."""

    @abstractmethod
    async def set_if_leased(
        self, key: str, token: str, value: Value, ex: float | None = None
    ) -> bool:
        """Set the value and end the lease, if it belongs to this token. Return whether it did."""

    @abstractmethod
    async def release_lease(self, key: str, token: str) -> None:
        """End the lease without setting a value, if it belongs to this token."""

    async def count(self, key: str, seconds: int) -> Counted | None:
        """Increment a counter. Only a backend that all processes share needs counters."""
        raise NotImplementedError

    @abstractmethod
    async def ping(self) -> None:
        """Raises CacheUnavailableError if the backend does not work."""

    @abstractmethod
    async def info(self) -> dict[str, Any]:
        """Return JSON-compatible details: at least the number of `entries`, and no secrets."""
