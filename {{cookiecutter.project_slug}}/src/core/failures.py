"""Helpers to store and log errors and outages."""

from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

MAX_LENGTH = 2000


def describe(error: BaseException) -> str:
    """Return the error's class and message as text that PostgreSQL can store."""
    text = f"{type(error).__qualname__}: {error}"[:MAX_LENGTH]
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


@dataclass
class Outage:
    """Logs the start and the end of an outage once, not every failed attempt."""

    unavailable: str  # log event at the start of an outage
    recovered: str  # log event at its end
    is_on: bool = False

    def begin(self, error: BaseException) -> None:
        if not self.is_on:
            self.is_on = True
            log.warning(self.unavailable, cause=str(error) or "no response in time")

    def end(self) -> None:
        if self.is_on:
            self.is_on = False
            log.info(self.recovered)
