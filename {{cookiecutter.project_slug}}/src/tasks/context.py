"""Functions for use inside a task: transaction, settings, message id and progress."""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import UUID

from dramatiq.asyncio import EventLoopThread, get_event_loop_thread
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.context import Context, optional_context, transaction, use_context
from src.core.context import current_settings as task_settings
from src.repositories.task import TaskRepository

__all__ = [
    "TaskContext",
    "message_id",
    "report_progress",
    "run",
    "task_settings",
    "transaction",
    "use_context",
]

T = TypeVar("T")


@dataclass(frozen=True)
class TaskContext(Context):
    message_id: str | None = None
    is_tracked: bool = False


def message_id() -> str | None:
    """Return the message id, which is the same in every attempt. Return None outside a worker."""
    context = optional_context()
    return context.message_id if isinstance(context, TaskContext) else None


async def report_progress(db: AsyncSession, *, done: int, total: int | None = None) -> None:
    """Store the progress of a tracked task. It is visible once the transaction of `db` commits.

    Does nothing if the task is not tracked.
    """
    context = optional_context()
    if isinstance(context, TaskContext) and context.is_tracked:
        await TaskRepository(db).set_progress(UUID(context.message_id), done=done, total=total)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine on the worker's event loop. For actors that are not `async def`."""
    return cast(EventLoopThread, get_event_loop_thread()).run_coroutine(work)
