import structlog
from dramatiq.broker import MessageProxy

from src.core.context import set_context
from src.core.trace import principal_id, request_id, traceparent
from src.tasks.context import TaskContext
from src.tasks.engine.middleware.base import AttemptMiddleware
from src.tasks.outbox import PRINCIPAL, REQUEST_ID, TRACEPARENT, is_tracked


class ContextMiddleware(AttemptMiddleware):
    """Sets the context variables that loggers and actors read.

    It must be the first middleware. The next task in the thread overwrites the variables.
    """

    def before_attempt(self, message: MessageProxy) -> None:
        principal_id.set(message.options.get(PRINCIPAL))
        request_id.set(message.options.get(REQUEST_ID))
        traceparent.set(message.options.get(TRACEPARENT))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task=message.message_id, actor=message.actor_name)
        set_context(
            TaskContext(
                self._resources.settings,
                self._resources.database,
                message.message_id,
                is_tracked(message.actor_name),
            )
        )
