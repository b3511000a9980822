import threading
from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.broker import MessageProxy

from src.tasks.engine.middleware.resources import ResourcesMiddleware


class AttemptMiddleware(Middleware):
    """Hooks before and after an attempt at a task, both in the thread that runs it.

    Dramatiq only logs what a hook raises. Exceptions are MiddlewareError from `before_attempt`,
    which makes the attempt fail before it starts, and SkipMessage, which ends the task.
    """

    def __init__(self, resources: ResourcesMiddleware) -> None:
        self._resources = resources
        self._local = threading.local()

    def before_attempt(self, message: MessageProxy) -> None: ...

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        """The task has ended if `message.failed` or if there is no exception."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self.before_attempt(message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        self.after_attempt(message, result, exception)

    after_skip_message = after_process_message
