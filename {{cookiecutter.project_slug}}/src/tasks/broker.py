"""Creates the broker that the settings select, with its middleware."""

from typing import assert_never

import dramatiq
from dramatiq import Middleware
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    Pipelines,
    TimeLimit,
)

from src.core.config import Settings, get_settings
from src.tasks.engine.brokers.base import CheckedEncoder, TaskBroker
from src.tasks.engine.dramatiq_patches import DaemonAsyncIO
from src.tasks.engine.middleware import (
    # % if cookiecutter.cache_backend != "none"
    caching,
    # % endif
    resources,
)
from src.tasks.engine.middleware.context import ContextMiddleware
from src.tasks.engine.middleware.interruption import InterruptionMiddleware
from src.tasks.engine.middleware.metrics import MetricsMiddleware
from src.tasks.engine.middleware.poison import PoisonMessageMiddleware
from src.tasks.engine.middleware.retries import RetriesMiddleware
from src.tasks.engine.middleware.tracking import TaskTrackingMiddleware

MAX_RETRIES = 10
# Milliseconds
TIME_LIMIT = 600_000
MIN_BACKOFF = 1_000
MAX_BACKOFF = 600_000


def middleware(settings: Settings) -> list[Middleware]:
    """Return the middleware. Dramatiq calls `after_` hooks in reverse order."""
    shared = resources.ResourcesMiddleware(settings)
    return [
        ContextMiddleware(shared),
        PoisonMessageMiddleware(shared),  # may wait, so it precedes those that record a start
        MetricsMiddleware(shared),
        TaskTrackingMiddleware(shared),
        AgeLimit(),
        Callbacks(),
        Pipelines(),
        RetriesMiddleware(
            max_retries=MAX_RETRIES, min_backoff=MIN_BACKOFF, max_backoff=MAX_BACKOFF
        ),
        CurrentMessage(),
        # These two raise exceptions in the thread. They are last, to interrupt only the task.
        InterruptionMiddleware(),
        TimeLimit(time_limit=TIME_LIMIT),
        DaemonAsyncIO(),
        shared,  # needs the event loop of DaemonAsyncIO
        # % if cookiecutter.cache_backend != "none"
        caching.CachingMiddleware(shared),
        # % endif
    ]


def create_broker(settings: Settings) -> TaskBroker:
    """Create the broker. It connects on first use."""
    namespace = settings.DRAMATIQ_NAMESPACE or f"{settings.namespace}.tasks"
    # % if cookiecutter.__queue_rabbitmq
    if settings.DRAMATIQ_BROKER == "rabbitmq":
        from src.tasks.engine.brokers.rabbitmq import RabbitmqTaskBroker  # noqa: PLC0415 - imported on use

        return RabbitmqTaskBroker(
            settings.RABBITMQ_URL.get_secret_value(),
            namespace=namespace,
            middleware=middleware(settings),
        )
    # % endif
    # % if cookiecutter.__queue_redis
    if settings.DRAMATIQ_BROKER == "redis":
        from src.tasks.engine.brokers.redis import RedisTaskBroker  # noqa: PLC0415 - imported on use

        return RedisTaskBroker(
            settings.queue_redis_url,
            namespace=namespace,
            middleware=middleware(settings),
        )
    # % endif
    assert_never(settings.DRAMATIQ_BROKER)


broker = create_broker(get_settings())
dramatiq.set_broker(broker)
dramatiq.set_encoder(CheckedEncoder())
