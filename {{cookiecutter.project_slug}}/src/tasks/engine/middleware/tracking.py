"""The states of tasks that are followed, in PostgreSQL: `@dramatiq.actor(followed=True)`."""

import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import structlog
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage
from sqlalchemy.exc import SQLAlchemyError

from src.db.session import DatabaseUnavailableError
from src.domain.errors import DomainError
from src.domain.task import TaskStatus
from src.repositories.task import TaskRepository
from src.tasks.engine.brokers.base import LONGEST_ERROR, mark_dead
from src.tasks.engine.middleware.base import Around
from src.tasks.engine.middleware.poison import NotRecordedError
from src.tasks.engine.middleware.resources import ResourcesMiddleware
from src.tasks.outbox import FOLLOWED, is_followed

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0


class FollowingMiddleware(Around):
    """A task whose end was recorded is not done again, should its message be delivered twice."""

    def __init__(self, resources: ResourcesMiddleware) -> None:
        self._resources = resources
        self._local = threading.local()

    @property
    def actor_options(self) -> set[str]:
        return {FOLLOWED}

    def begin(self, message: MessageProxy) -> None:
        self._local.attempt = None
        if not is_followed(message.actor_name):
            return
        task_id = UUID(message.message_id)
        try:
            self._local.attempt = self._resources.run(
                self._books(lambda books: books.start(task_id, message.actor_name))
            )
        except (DatabaseUnavailableError, SQLAlchemyError) as error:
            raise NotRecordedError(str(error)) from error
        if self._local.attempt is None:
            raise SkipMessage("The task is over.")

    def end(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        attempt = self._local.attempt
        if attempt is None:
            return
        task_id = UUID(message.message_id)
        if exception is None and not message.failed and (fault := _fault_of(result)):
            mark_dead(message, fault)
            log.error("task_has_no_result", cause=fault)
        if message.failed:
            problem = _problem(exception)
            self._record(lambda books: books.finish(task_id, TaskStatus.FAILED, problem=problem))
        elif exception is None:
            self._record(lambda books: books.finish(task_id, TaskStatus.DONE, result=result))
        else:
            self._record(lambda books: books.put_back(task_id, attempt))

    def _record(self, write: Callable[[TaskRepository], Awaitable[None]]) -> None:
        """Write it, however long the database is away: only then is the message acknowledged."""
        while True:
            try:
                self._resources.run(self._books(write))
            except (DatabaseUnavailableError, SQLAlchemyError) as error:
                log.warning("task_waits_to_be_recorded", cause=str(error))
                time.sleep(RETRY_SECONDS)
            else:
                return

    async def _books(self, act: Callable[[TaskRepository], Awaitable[Any]]) -> Any:
        async with self._resources.database.reads() as session:
            return await act(TaskRepository(session))


def _fault_of(result: Any) -> str | None:
    """Tell why the result cannot be kept, if so."""
    try:
        json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"The result is not JSON: {error}"[:LONGEST_ERROR]
    return None


def _problem(exception: BaseException | None) -> dict[str, Any]:
    """Describe the failure to those outside; what is not of the domain stays in the log."""
    if isinstance(exception, DomainError):
        return {
            "type": f"urn:problem-type:{exception.code}",
            "title": exception.title,
            "detail": str(exception),
        }
    return {
        "type": "urn:problem-type:task-failed",
        "title": "The task failed",
        "detail": "It was given up." if exception is None else "Something unexpected happened.",
    }
