from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.broker import MessageProxy


class Around(Middleware):
    """What surrounds an attempt at a task; both hooks are called in the thread that runs it.

    Dramatiq only logs what a hook raises, unless `begin` raises a MiddlewareError: then the attempt
    has failed before it began, or with SkipMessage is over.
    """

    def begin(self, message: MessageProxy) -> None: ...

    def end(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        """The attempt is over, for good if `message.failed` or there is no exception."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self.begin(message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        self.end(message, result, exception)

    after_skip_message = after_process_message
