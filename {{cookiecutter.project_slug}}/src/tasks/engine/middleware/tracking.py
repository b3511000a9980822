"""Stores the status of tracked tasks in PostgreSQL."""

import inspect
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import structlog
from dramatiq import Broker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.failures import describe
from src.domain.task import TaskStatus, problem_of
from src.repositories.task import TaskRepository
from src.tasks.engine.brokers.base import mark_dead
from src.tasks.engine.middleware.base import AttemptMiddleware
from src.tasks.engine.middleware.resources import NotRecordedError, ResourcesMiddleware
from src.tasks.outbox import TRACKED, is_tracked

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0


class TaskTrackingMiddleware(AttemptMiddleware):
    """Records attempts. A task that has ended is not started again after a redelivery."""

    def __init__(self, resources: ResourcesMiddleware) -> None:
        super().__init__(resources)
        self._running = set[tuple[UUID, int]]()

    @property
    def actor_options(self) -> set[str]:
        return {TRACKED}

    def before_attempt(self, message: MessageProxy) -> None:
        self._local.attempt = None
        if not is_tracked(message.actor_name):
            return
        task_id = UUID(message.message_id)
        attempt = self._resources.execute(
            lambda db: TaskRepository(db).start(task_id, message.actor_name)
        )
        if attempt is None:
            raise SkipMessage("The task has already ended.")
        self._local.attempt = (task_id, attempt)
        self._running.add(self._local.attempt)

    def after_attempt(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        if inspect.iscoroutine(result) or inspect.isasyncgen(result):
            mark_dead(message, "The actor returned a coroutine that did not run: use `async def`.")
            log.error("task_not_awaited")
            if inspect.iscoroutine(result):
                result.close()
        if self._local.attempt is None:
            return
        task_id, attempt = self._local.attempt
        if exception is None and not message.failed and (reason := _json_error(result)):
            mark_dead(message, reason)
            log.error("task_result_not_serializable", cause=reason)
        if message.failed:
            problem = problem_of(exception)
            self._record(
                lambda db: TaskRepository(db).finish(task_id, TaskStatus.FAILED, problem=problem)
            )
        elif exception is None:
            self._record(
                lambda db: TaskRepository(db).finish(task_id, TaskStatus.SUCCEEDED, result=result)
            )
        else:
            self._record(lambda db: TaskRepository(db).mark_queued(task_id, attempt))
        self._running.discard((task_id, attempt))

    def after_interruption(self) -> None:
        running = self._running.copy()

        async def mark_queued(db: AsyncSession) -> None:
            for task_id, attempt in running:
                await TaskRepository(db).mark_queued(task_id, attempt)

        if running:
            with suppress(NotRecordedError):
                self._resources.execute(mark_queued)

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Record that a message of an unknown actor failed: it may belong to a tracked task."""
        if message.actor_name in broker.actors:
            return
        with suppress(NotRecordedError, ValueError):  # ValueError: the id is not that of a task
            problem, task_id = problem_of(None), UUID(message.message_id)
            self._resources.execute(
                lambda db: TaskRepository(db).finish(task_id, TaskStatus.FAILED, problem=problem)
            )

    def _record(self, work: Callable[[AsyncSession], Awaitable[None]]) -> None:
        """Retry until the database has stored it. Only then is the message acknowledged."""
        while True:
            try:
                self._resources.execute(work)
            except NotRecordedError as error:
                log.warning("task_outcome_not_recorded", cause=str(error))
                time.sleep(RETRY_SECONDS)
            else:
                return


def _json_error(result: Any) -> str | None:
    """Return why the result cannot be stored as JSON, or None if it can."""
    try:
        json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"The result is not JSON: {describe(error)}"
    return None
