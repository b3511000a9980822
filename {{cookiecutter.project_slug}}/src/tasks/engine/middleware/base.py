import threading
from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.broker import MessageProxy

from src.tasks.engine.middleware.resources import ResourcesMiddleware


class AttemptMiddleware(Middleware):
    """Hooks before and after each attempt of a task. They run in the thread of the task.

    Dramatiq logs most errors of a hook and continues. `before_attempt` can raise MiddlewareError,
    which fails the attempt before it starts, or SkipMessage, which ends the task.
    """

    def __init__(self, resources: ResourcesMiddleware) -> None:
        self._resources = resources
        self._local = threading.local()

    def before_attempt(self, message: MessageProxy) -> None: ...

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        """The task has ended if `message.failed` is true or `exception` is None."""

    def after_interruption(self) -> None:
        """The worker stops, and these attempts do not end. This is called in another thread."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._local.has_begun = True
        self.before_attempt(message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        if self._local.__dict__.pop("has_begun", False):  # else an earlier middleware has raised
            self.after_attempt(message, result, exception)

    after_skip_message = after_process_message
