from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Any

from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis
from prometheus_client import Counter, Gauge, Histogram

from src.tasks.engine.brokers.base import UNREADABLE
from src.tasks.engine.health import serve
from src.tasks.engine.middleware.base import AttemptMiddleware

PROCESSED = Counter(
    "tasks_processed_total",
    "Attempts by outcome: succeeded, retry (another attempt follows) or dead.",
    ["queue", "actor", "outcome"],
)
DURATION = Histogram("tasks_duration_seconds", "Duration of an attempt.", ["queue", "actor"])
DELAY = Histogram(
    "tasks_delay_seconds",
    "Time from when a message is due until its attempt starts.",
    ["queue", "actor"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 1800, 7200),
)
IN_PROGRESS = Gauge(
    "tasks_in_progress", "Attempts in progress.", ["queue"], multiprocess_mode="livesum"
)


@lru_cache(maxsize=1024)
def _series(metric: Any, *labels: str) -> Any:
    """Return the series with these labels. `labels()` costs more than counting."""
    return metric.labels(*labels)


class MetricsMiddleware(AttemptMiddleware):
    """Records metrics of attempts, and makes Dramatiq start the health server."""

    @property
    def forks(self) -> list[Callable[[], int]]:
        return [] if self._resources.settings.DRAMATIQ_HEALTH_PORT is None else [serve]

    def before_attempt(self, message: MessageProxy) -> None:
        due = message.options.get("requeue_timestamp", message.message_timestamp)
        delay = max(0, current_millis() - due) / 1000
        _series(DELAY, *self._labels(message)).observe(delay)
        _series(IN_PROGRESS, message.queue_name).inc()
        self._local.started = perf_counter()

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        duration = perf_counter() - self._local.started
        outcome = "dead" if message.failed else "retry" if exception else "succeeded"
        labels = self._labels(message)
        _series(IN_PROGRESS, message.queue_name).dec()
        _series(DURATION, *labels).observe(duration)
        _series(PROCESSED, *labels, outcome).inc()

    def _labels(self, message: MessageProxy) -> tuple[str, str]:
        """Return queue and actor. Other programs could send any number of unknown actors."""
        is_known = message.actor_name in self._resources.broker.actors
        return message.queue_name, message.actor_name if is_known else UNREADABLE
