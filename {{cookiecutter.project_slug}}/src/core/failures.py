"""How errors and outages are recorded and logged."""

from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

MAX_LENGTH = 2000


def describe(error: BaseException) -> str:
    """Return the error's name and message, as a text column can store them."""
    text = f"{type(error).__qualname__}: {error}"[:MAX_LENGTH]
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


@dataclass
class Outage:
    """Logs once that a server is unavailable, however often it is tried, and once its recovery."""

    unavailable: str  # the log event of an outage
    recovered: str
    is_on: bool = False

    def begin(self, error: BaseException) -> None:
        if not self.is_on:
            self.is_on = True
            log.warning(self.unavailable, cause=str(error) or "no response in time")

    def end(self) -> None:
        if self.is_on:
            self.is_on = False
            log.info(self.recovered)
