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
    """Makes a dead letter of a message that kills its worker each time.

    A worker that dies has taken several messages, and which one killed it is unknown. So each of
    them is counted from its second delivery on, when it starts; the fourth such start makes it a
    dead letter instead. All other messages, which are nearly all, cost nothing.
    """

    def before_attempt(self, message: MessageProxy) -> None:
        self._local.is_counted = self._resources.broker.is_redelivered(message)
        if not self._local.is_counted:
            return
        starts = self._resources.execute(
            lambda db: RedeliveryRepository(db).count_start(message.message_id)
        )
        if starts > MAX_STARTS:
            reason = f"Its worker died {MAX_STARTS} times as it ran."
            mark_dead(message, reason)
            log.error("poison_message_detected", starts=MAX_STARTS)
            raise SkipMessage(reason)

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        # `before_attempt` was not called if that of another middleware raised.
        is_counted = self._local.__dict__.pop("is_counted", False)
        if not is_counted or isinstance(exception, NotRecordedError):
            return
        try:
            self._resources.execute(lambda db: RedeliveryRepository(db).delete(message.message_id))
        except NotRecordedError as error:
            log.warning("redelivery_count_not_cleared", cause=str(error))  # pruning deletes it
