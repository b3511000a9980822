"""Cache policy: TTL, serialization and metrics of one cached function or endpoint."""

import json
import math
import random
from time import time
from typing import Generic, NamedTuple, TypeVar

import structlog
from prometheus_client import Counter
from pydantic_core import from_json

from src.cache.backends.base import Value
from src.cache.engine.codec import Codec

log = structlog.get_logger(__name__)

# Keys are never labels: their number is unlimited.
REQUESTS = Counter(
    "cache_requests_total",
    "Cache lookups by result: hit, miss, stale or bypass.",
    ["cache", "result"],
)

T = TypeVar("T")


class CachedValue(NamedTuple, Generic[T]):
    value: T
    payload: bytes
    is_fresh: bool


class Policy(Generic[T]):
    """`ttl` and `stale` are in seconds. Raises ValueError if an argument is out of range.

    `owner` is the function that computes the values. It is stored with each of them: another
    function with the same key, such as the same `key_prefix`, must not return them.

    The TTL of each value is shortened by a random part of up to `jitter * ttl`, so that values
    that were stored together do not expire together. After the TTL, a value is stale for `stale`
    seconds: it is still returned, while it is refreshed in the background.
    """

    def __init__(
        self,
        name: str,
        codec: Codec[T],
        owner: str,
        *,
        ttl: float | None = None,
        stale: float = 0,
        jitter: float = 0.1,
    ) -> None:
        if (ttl is not None and ttl <= 0) or stale < 0 or not 0 <= jitter < 1:
            raise ValueError(
                f"The cache policy of `{name}` is invalid: `ttl` must be greater than 0,"
                " `stale` must be 0 or more, `jitter` must be at least 0 and less than 1."
            )
        self.name = name
        self.codec = codec
        self.owner = owner
        self._owner = owner.encode()
        self._warned = False
        self.ttl = ttl
        self.stale = stale
        self.jitter = jitter
        # Stored, because `labels()` takes longer than `inc()`.
        self.hits = REQUESTS.labels(name, "hit")
        self.stale_hits = REQUESTS.labels(name, "stale")
        self.misses = REQUESTS.labels(name, "miss")
        self.bypasses = REQUESTS.labels(name, "bypass")

    def pack(self, payload: bytes, versions: list[str], default_ttl: float) -> tuple[bytes, float]:
        """Return the bytes to store, and their TTL in seconds.

        The bytes are the owner, a JSON list and the payload, each on its own line. The list has
        the time at which the value becomes stale (0 for never), and the version of each tag before
        the computation. It is omitted if the value has no tags and never becomes stale.
        """
        ttl = (self.ttl or default_ttl) * (1 - random.random() * self.jitter)  # noqa: S311 - no secret
        fresh_until = time() + ttl if self.stale else 0
        head = json.dumps([fresh_until, *versions]).encode() if versions or fresh_until else b""
        return b"\n".join((self._owner, head, payload)), ttl + self.stale

    def unpack(self, stored: Value | None, versions: list[Value | None]) -> CachedValue[T] | None:
        """Return None if a tag was invalidated, or if `pack` did not produce the bytes."""
        if not isinstance(stored, bytes):
            return None
        try:
            owner, head, payload = stored.split(b"\n", 2)
        except ValueError:
            return None
        if owner != self._owner:
            self.warn(owner.decode(errors="replace"))
            return None
        try:
            # `from_json` takes a tenth of the time of `json.loads`.
            fresh_until, *stored_versions = from_json(head) if head else (0,)
            if stored_versions != versions:
                return None
            # A value that is fresh for longer than `ttl` is from before the clock was set back.
            is_fresh = not fresh_until or 0 < fresh_until - time() <= (self.ttl or math.inf)
            return CachedValue(self.codec.decode(payload), payload, is_fresh)
        except (TypeError, ValueError):  # a different release of the service stored it
            return None

    def warn(self, other: str) -> None:
        if not self._warned:
            self._warned = True
            hint = "give each function its own key_prefix or key"
            log.warning("cache_key_conflict", functions=[self.owner, other], hint=hint)
