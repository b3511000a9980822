import threading
from contextlib import ExitStack

from dramatiq import Broker, Middleware
from dramatiq.worker import WorkerThread

from src.cache import use_cache
from src.tasks.engine.middleware.resources import ResourcesMiddleware


class CachingMiddleware(Middleware):
    """Makes the cache of the process available to tasks: `@cached`, `invalidate()` and models."""

    def __init__(self, resources: ResourcesMiddleware) -> None:
        self._resources = resources
        self._local = threading.local()

    def after_worker_thread_boot(self, broker: Broker, thread: WorkerThread) -> None:
        self._local.stack = ExitStack()
        self._local.stack.enter_context(use_cache(self._resources.cache))

    def before_worker_thread_shutdown(self, broker: Broker, thread: WorkerThread) -> None:
        self._local.stack.close()
