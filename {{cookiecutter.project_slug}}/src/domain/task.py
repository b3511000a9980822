from enum import StrEnum
from uuid import UUID

from src.domain.errors import NotFoundError


class TaskStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


OVER = (TaskStatus.DONE, TaskStatus.FAILED)


class TaskNotFoundError(NotFoundError):
    code = "task-not-found"
    title = "No such task"

    def __init__(self, task_id: UUID) -> None:
        super().__init__(f"There is no task {task_id}, or it was over long ago.")
