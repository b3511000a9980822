"""How long the values of one function, or the responses of one endpoint, are cached, and as what."""

import json
import random
from time import time
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import Counter
from pydantic_core import from_json

from src.cache.backends.base import Value
from src.cache.engine.codec import Codec

# Keys are never labels: there is no end to them.
REQUESTS = Counter(
    "cache_requests_total",
    "Cache lookups by result: hit, miss, stale or bypass.",
    ["cache", "result"],
)

T = TypeVar("T")


class Found(NamedTuple, Generic[T]):
    value: T
    payload: bytes
    is_fresh: bool


class Policy(Generic[T]):
    """Durations are in seconds.

    A value lives for `ttl`, less a random part of up to `jitter` of it, so that values stored
    together do not expire together. For `stale` seconds more it is still returned while it is
    refreshed in the background. Raises ValueError.
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
        """Return what to store, and for how long.

        What is stored is a line of JSON, empty if there is nothing to say, and the payload. The
        line says until when the value is fresh, 0 if always, and which versions its tags had
        before it was computed.
        """
        ttl = (self.ttl or default_ttl) * (1 - random.random() * self.jitter)  # noqa: S311 - no secret
        fresh_until = time() + ttl if self.stale else 0
        head = json.dumps([fresh_until, *versions]).encode() if versions or fresh_until else b""
        return head + b"\n" + payload, ttl + self.stale

    def unpack(self, stored: Value | None, versions: list[Value | None]) -> Found[T] | None:
        """Return the value, unless its tags have other versions or `pack` did not make it."""
        if not isinstance(stored, bytes):
            return None
        head, newline, payload = stored.partition(b"\n")
        if not newline:
            return None
        try:
            # from_json takes a tenth of the time of json.loads.
            fresh_until, *computed_with = from_json(head) if head else (0,)
            if computed_with != versions:
                return None
            is_fresh = not fresh_until or time() < fresh_until
            return Found(self.codec.decode(payload), payload, is_fresh)
        except (TypeError, ValueError):  # another release of the service made it
            return None
