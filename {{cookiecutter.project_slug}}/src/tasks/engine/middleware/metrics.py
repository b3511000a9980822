import threading
from collections.abc import Callable, Mapping
from functools import cache
from time import perf_counter
from typing import Any, NamedTuple

from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis
from prometheus_client import Counter, Gauge, Histogram

from src.core.config import Settings
from src.tasks.engine.metrics import DELAY, DURATION, IN_PROGRESS, LAST_STARTED, PROCESSED
from src.tasks.engine.middleware.base import Around

OUTCOMES = ("done", "retry", "dead")


class Series(NamedTuple):
    delay: Histogram
    duration: Histogram
    in_progress: Gauge
    last_started: Gauge
    processed: Mapping[str, Counter]


@cache
def series_of(queue: str, actor: str) -> Series:
    """Look the series up once: to find them costs more than to count."""
    return Series(
        delay=DELAY.labels(queue, actor),
        duration=DURATION.labels(queue, actor),
        in_progress=IN_PROGRESS.labels(queue),
        last_started=LAST_STARTED.labels(queue),
        processed={outcome: PROCESSED.labels(queue, actor, outcome) for outcome in OUTCOMES},
    )


class MetricsMiddleware(Around):
    """Counts attempts, and has the numbers given out by a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = threading.local()

    @property
    def forks(self) -> list[Callable[[], int]]:
        if self._settings.DRAMATIQ_HEALTH_PORT is None:
            return []
        from src.tasks.engine.health import serve  # noqa: PLC0415 - it imports the broker, which has us

        return [serve]

    def begin(self, message: MessageProxy) -> None:
        series = series_of(message.queue_name, message.actor_name)
        sent = message.options.get("requeue_timestamp", message.message_timestamp)
        series.delay.observe(max(0, current_millis() - sent) / 1000)
        series.last_started.set(sent / 1000)
        series.in_progress.inc()
        self._local.started = perf_counter()

    def end(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        series = series_of(message.queue_name, message.actor_name)
        series.in_progress.dec()
        series.duration.observe(perf_counter() - self._local.started)
        outcome = "dead" if message.failed else "retry" if exception else "done"
        series.processed[outcome].inc()
