import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis

from src.core.config import Settings
from src.tasks.engine.health import serve
from src.tasks.engine.metrics import DELAY, DURATION, IN_PROGRESS, PROCESSED
from src.tasks.engine.middleware.base import AttemptMiddleware


class MetricsMiddleware(AttemptMiddleware):
    """Counts attempts, and lets Dramatiq start the process that serves the counts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = threading.local()

    @property
    def forks(self) -> list[Callable[[], int]]:
        return [] if self._settings.DRAMATIQ_HEALTH_PORT is None else [serve]

    def before_attempt(self, message: MessageProxy) -> None:
        due = message.options.get("requeue_timestamp", message.message_timestamp)
        delay = max(0, current_millis() - due) / 1000
        DELAY.labels(message.queue_name, message.actor_name).observe(delay)
        IN_PROGRESS.labels(message.queue_name).inc()
        self._local.started = perf_counter()

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        duration = perf_counter() - self._local.started
        outcome = "dead" if message.failed else "retry" if exception else "succeeded"
        IN_PROGRESS.labels(message.queue_name).dec()
        DURATION.labels(message.queue_name, message.actor_name).observe(duration)
        PROCESSED.labels(message.queue_name, message.actor_name, outcome).inc()
