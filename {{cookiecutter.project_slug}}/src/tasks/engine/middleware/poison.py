import threading
from contextlib import suppress
from typing import Any

import structlog
from dramatiq.broker import MessageProxy

from src.repositories.task import RedeliveryRepository
from src.tasks.engine.brokers.base import mark_dead
from src.tasks.engine.middleware.base import AttemptMiddleware
from src.tasks.engine.middleware.resources import NotRecordedError, ResourcesMiddleware

log = structlog.get_logger(__name__)

MAX_STARTS = 3


class PoisonMessageMiddleware(AttemptMiddleware):
    """Turns a poison message, which kills its worker each time, into a dead letter.

    When a worker dies, any of its tasks may be the cause. So each start of a redelivered message
    is counted, until the task ends or the worker stops. A message that has a count runs alone in
    its process: if the worker dies again, no other task is counted. After MAX_STARTS starts, the
    message becomes a dead letter. Messages that are delivered once cost nothing.
    """

    def __init__(self, resources: ResourcesMiddleware) -> None:
        super().__init__(resources)
        self._turns = _Turns()
        self._counted = set[str]()

    def before_attempt(self, message: MessageProxy) -> None:
        id_, execute = message.message_id, self._resources.execute
        is_redelivered = self._resources.broker.is_redelivered(message)
        alone = is_redelivered and execute(lambda db: RedeliveryRepository(db).starts(id_)) > 0
        self._turns.begin(alone=alone)
        self._local.alone = alone
        if not is_redelivered:
            return
        starts = execute(lambda db: RedeliveryRepository(db).count_start(id_))
        self._counted.add(id_)
        if starts > MAX_STARTS:
            mark_dead(message, f"Poison message: its worker died at least {MAX_STARTS} times.")
            log.error("poison_message_detected", starts=MAX_STARTS)

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        # `before_attempt` is not complete if it has raised.
        if (alone := self._local.__dict__.pop("alone", None)) is not None:
            self._turns.end(alone=alone)
        if message.message_id not in self._counted:
            return
        self._counted.discard(message.message_id)
        try:
            self._resources.execute(lambda db: RedeliveryRepository(db).delete(message.message_id))
        except NotRecordedError as error:
            log.warning("redelivery_count_not_cleared", cause=str(error))  # pruning deletes the row

    def after_interruption(self) -> None:
        if counted := self._counted.copy():
            with suppress(NotRecordedError):
                self._resources.execute(lambda db: RedeliveryRepository(db).uncount_starts(counted))


class _Turns:
    """A lock that tasks share, except those that run alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._is_reserved = False  # by a task that runs alone, or waits for that

    def begin(self, *, alone: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_reserved)
            if alone:
                self._is_reserved = True
                self._changed.wait_for(lambda: not self._running)
            self._running += 1

    def end(self, *, alone: bool) -> None:
        with self._changed:
            self._running -= 1
            self._is_reserved = self._is_reserved and not alone
            self._changed.notify_all()
