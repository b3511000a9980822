"""What a task finds besides its arguments. See also `src.core.context`."""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from dramatiq.asyncio import get_event_loop_thread
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.context import Context, current_context, transaction, use_context
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
    """Return the id that all deliveries of the message share; None outside a worker."""
    context = current_context()
    return context.message_id if isinstance(context, TaskContext) else None


async def report_progress(db: AsyncSession, *, done: int, total: int | None = None) -> None:
    """Show how far a tracked task is, once the transaction of `db` commits."""
    context = current_context()
    if isinstance(context, TaskContext) and context.is_tracked:
        await TaskRepository(db).set_progress(UUID(context.message_id), done=done, total=total)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine on the event loop of this worker process, from an actor that is not async."""
    thread = get_event_loop_thread()
    if thread is None:
        work.close()
        raise RuntimeError("There is no event loop: run() is for actors in a worker.")
    return thread.run_coroutine(work)
