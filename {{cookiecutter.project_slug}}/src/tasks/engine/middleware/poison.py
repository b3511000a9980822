"""Against messages that kill their workers: without it they would do so for ever."""

import threading
from typing import Any

import structlog
from dramatiq.broker import MessageProxy
from dramatiq.middleware import MiddlewareError, SkipMessage
from sqlalchemy.exc import SQLAlchemyError

from src.db.session import DatabaseUnavailableError
from src.repositories.task import RedeliveryRepository
from src.tasks.engine.brokers.base import mark_dead
from src.tasks.engine.middleware.base import Around
from src.tasks.engine.middleware.resources import ResourcesMiddleware

log = structlog.get_logger(__name__)

MAX_STARTS = 3


class NotRecordedError(MiddlewareError):
    """What must be written down before the task begins cannot be just now."""


class GuardMiddleware(Around):
    """Counts how often a message is started after its worker went away without a word.

    Which of its messages a worker died of, if of any, nobody knows: it has taken some in advance.
    So each is counted from its second delivery on, when it is really started; at the fourth start
    it is a dead letter. The other messages, nearly all, cost nothing.
    """

    def __init__(self, resources: ResourcesMiddleware) -> None:
        self._resources = resources
        self._local = threading.local()

    def begin(self, message: MessageProxy) -> None:
        self._local.is_counted = self._resources.broker.is_redelivered(message)
        if not self._local.is_counted:
            return
        try:
            starts = self._resources.run(self._count_start(message.message_id))
        except (DatabaseUnavailableError, SQLAlchemyError) as error:
            raise NotRecordedError(str(error)) from error
        if starts > MAX_STARTS:
            reason = f"Its worker died {MAX_STARTS} times as it ran."
            mark_dead(message, reason)
            log.error("task_killed_its_workers", starts=MAX_STARTS)
            raise SkipMessage(reason)

    def end(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        # `begin` was not called if another one, further out, raised before.
        is_counted = self._local.__dict__.pop("is_counted", False)
        if not is_counted or isinstance(exception, NotRecordedError):
            return
        try:
            self._resources.run(self._forget(message.message_id))
        except (DatabaseUnavailableError, SQLAlchemyError) as error:
            log.warning("starts_not_forgotten", cause=str(error))  # until they are too old

    async def _count_start(self, message_id: str) -> int:
        async with self._resources.database.reads() as session:
            return await RedeliveryRepository(session).count_start(message_id)

    async def _forget(self, message_id: str) -> None:
        async with self._resources.database.reads() as session:
            await RedeliveryRepository(session).forget(message_id)
