"""What every cache backend does, and how it says that it cannot."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Self

Value = str | bytes


class CacheError(Exception):
    """The backend could not do this one thing; the message says why."""


class CacheUnavailableError(CacheError):
    """The backend cannot be had just now, for anything."""


class CacheBackend(ABC):
    r"""A store of values that may vanish at any time, in a namespace of its own.

    Keys are `str`. A value comes back as the type that it was set with, `str` or `bytes`. `ex` is
    a time to live in seconds, and may be a fraction; without it a value lives for the backend's
    `ttl`, and for ever if that is None. Patterns are `*`, `?`, `[abc]`, `[^a]`, and `\\` before a literal one.

    Every method may raise CacheError, and ValueError for an `ex` that is not positive.

    A lease is the right to compute one key's value: one caller at a time holds it, until it
    expires. Deleting a key, however that is done, also ends the lease on it, so that a value
    computed from what was true before is not stored after. (Nishtala et al., "Scaling Memcache
    at Facebook", NSDI 2013, 3.2.1.)
    """

    name: str

    def __init__(self, *, ttl: float | None = None) -> None:
        self.ttl = ttl

    def lifetime(self, ex: float | None) -> float | None:
        """Return how many seconds a value set so lives, None for ever. Raises ValueError."""
        if ex is None:
            return self.ttl
        if not ex > 0:  # which NaN is not either
            raise ValueError(f"A time to live must be positive, not {ex}.")
        return ex

    @property
    def available(self) -> bool:
        """Whether to try at all; False while a server that failed is left alone."""
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:  # noqa: B027 - some hold nothing open
        """Give back what the backend holds open. It is not used again."""

    @abstractmethod
    async def get(self, key: str) -> Value | None: ...

    @abstractmethod
    async def get_many(self, *keys: str) -> list[Value | None]:
        """Return the values in the order of the keys, None for each that has none."""

    @abstractmethod
    async def set(self, key: str, value: Value, ex: float | None = None) -> None: ...

    @abstractmethod
    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        """Set the value only if the key has none, and tell whether it was set."""

    @abstractmethod
    async def delete(self, *keys: str) -> int:
        """Return how many of the keys had a value."""

    @abstractmethod
    async def delete_matching(self, pattern: str) -> int:
        """Delete every key that matches, and return how many had a value."""

    @abstractmethod
    def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        """Yield the keys that match, each once, in no order.

        Keys that come or go meanwhile may or may not be among them.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Delete everything in the namespace, and nothing outside."""

    @abstractmethod
    async def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        """Take the lease on a key under a token of one's own; False while another one holds it."""

    @abstractmethod
    async def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        """Prolong a lease; False if it is no longer held under this token."""

    @abstractmethod
    async def set_if_leased(
        self, key: str, token: str, value: Value, ex: float | None = None
    ) -> bool:
        """Set the value and end the lease; if that is no longer held, do nothing: False."""

    @abstractmethod
    async def release_lease(self, key: str, token: str) -> None:
        """End the lease, if it is held under this token, without a value."""

    @abstractmethod
    async def ping(self) -> None:
        """Return if the backend works. Raises CacheUnavailableError if it does not."""

    @abstractmethod
    async def info(self) -> dict[str, Any]:
        """Describe the state in JSON's types: at least `entries`, and no secret."""
