"""The status of tracked tasks."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Response

from src.api.auth import require
from src.api.deps import DbReader
from src.api.openapi import problems
from src.domain.principal import Scope
from src.domain.task import TERMINAL_STATUSES, TaskNotFoundError
from src.repositories.task import TaskRepository
from src.schemas.task import TaskResponse

router = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[require(Scope.TASKS_READ)])


@router.get("/{task_id}", responses=problems(TaskNotFoundError))
async def get_task(
    task_id: Annotated[UUID, Path(description="ID of the task.")],
    db: DbReader,
    response: Response,
) -> TaskResponse:
    """Return the status, progress and result of a task that another endpoint has accepted.

    While the task is queued or running, the response has the header `Retry-After`: repeat the
    request after that many seconds.
    """
    task = await TaskRepository(db).read_or_raise(TaskResponse, task_id, TaskNotFoundError)
    response.headers["Cache-Control"] = "no-store"
    if task.status not in TERMINAL_STATUSES:
        response.headers["Retry-After"] = "1"
    return task
