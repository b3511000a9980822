from enum import StrEnum

from src.domain.errors import NotFoundError


class TaskStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TERMINAL_STATUSES = (TaskStatus.SUCCEEDED, TaskStatus.FAILED)


class TaskNotFoundError(NotFoundError):
    code = "task-not-found"
    title = "Task not found"
    message = "There is no task {id}. Tasks are deleted some time after they end."
