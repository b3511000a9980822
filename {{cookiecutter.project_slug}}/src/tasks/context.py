"""What a task finds besides its arguments: there are no globals."""

from collections.abc import Coroutine, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from dramatiq.asyncio import get_event_loop_thread
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import Settings
from src.db import Database
from src.repositories.task import TaskRepository

T = TypeVar("T")


@dataclass(frozen=True)
class TaskContext:
    settings: Settings
    database: Database
    message_id: str | None = None
    is_followed: bool = False


_current: ContextVar[TaskContext] = ContextVar("task_context")


@contextmanager
def use_context(context: TaskContext) -> Generator[TaskContext]:
    """Let the actors that the block calls find this context."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def set_context(context: TaskContext) -> None:
    _current.set(context)


def task_settings() -> Settings:
    return _current.get().settings


def message_id() -> str | None:
    """Return what stays the same however often the message is delivered; none outside a worker."""
    return _current.get().message_id


def transaction() -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session for the task; it commits when the block ends, and rolls back when it raises."""
    return _current.get().database.transaction()


async def report_progress(db: AsyncSession, *, done: int, total: int | None = None) -> None:
    """Let those who follow the task see how far it is, once the transaction of `db` commits."""
    context = _current.get()
    if context.is_followed:
        await TaskRepository(db).set_progress(UUID(context.message_id), done=done, total=total)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Let an actor that is no `async def` call what is one, on the loop of this worker process."""
    thread = get_event_loop_thread()
    if thread is None:
        work.close()
        raise RuntimeError("There is no event loop: run() is for actors in a worker.")
    return thread.run_coroutine(work)
