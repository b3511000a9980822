"""Rates such as `300/minute`, and counters in the memory of this process."""

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import NamedTuple, Self

MAX_COUNTERS = 50_000  # about 20 MB

_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


class Counted(NamedTuple):
    number: int  # of requests in the current window, with this one
    seconds_left: float


# Counts a request under a key, in a window of so many seconds. Returns None if it cannot.
Count = Callable[[str, int], Awaitable[Counted | None]]


class Rate(NamedTuple):
    text: str
    quota: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Self:
        if match := _RATE.fullmatch(text):
            return cls(text, int(match[1]), _SECONDS[match[2]])
        raise ValueError(f"must be a rate like 300/minute, per second, minute, hour or day: {text}")


class MemoryCounters:
    """Counts up to `MAX_COUNTERS` callers. When it is full, it forgets the least active one."""

    def __init__(self) -> None:
        # A plain dictionary needs longer and longer to find its first key.
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def count(self, key: str, seconds: int) -> Counted:
        now = monotonic()
        number, end = self._windows.pop(key, (0, 0.0))
        if end <= now:
            number, end = 0, now + seconds
        if len(self._windows) >= MAX_COUNTERS:
            self._windows.popitem(last=False)
        self._windows[key] = number + 1, end
        return Counted(number + 1, end - now)
