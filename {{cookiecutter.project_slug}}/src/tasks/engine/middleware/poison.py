from typing import Any

import structlog
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage

from src.repositories.task import RedeliveryRepository
from src.tasks.engine.brokers.base import mark_dead
from src.tasks.engine.middleware.base import AttemptMiddleware
from src.tasks.engine.middleware.resources import NotRecordedError

log = structlog.get_logger(__name__)

MAX_STARTS = 3


class PoisonMessageMiddleware(AttemptMiddleware):
    """Turns a poison message, which kills its worker each time, into a dead letter.

    When a worker dies, it has fetched several messages, and any of them may be the cause. So each
    start of a redelivered message is counted. After MAX_STARTS starts, the message becomes a dead
    letter. Messages that are delivered once cost nothing.
    """

    def before_attempt(self, message: MessageProxy) -> None:
        self._local.is_counted = self._resources.broker.is_redelivered(message)
        if not self._local.is_counted:
            return
        starts = self._resources.execute(
            lambda db: RedeliveryRepository(db).count_start(message.message_id)
        )
        if starts > MAX_STARTS:
            reason = f"Poison message: its worker died at least {MAX_STARTS} times."
            mark_dead(message, reason)
            log.error("poison_message_detected", starts=MAX_STARTS)
            raise SkipMessage(reason)

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        # `before_attempt` is not called if another middleware raises first.
        is_counted = self._local.__dict__.pop("is_counted", False)
        if not is_counted or isinstance(exception, NotRecordedError):
            return
        try:
            self._resources.execute(lambda db: RedeliveryRepository(db).delete(message.message_id))
        except NotRecordedError as error:
            log.warning("redelivery_count_not_cleared", cause=str(error))  # pruning deletes the row
