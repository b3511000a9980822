from enum import StrEnum
from typing import Any

from src.domain.errors import DomainError, NotFoundError


class TaskStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TERMINAL_STATUSES = (TaskStatus.SUCCEEDED, TaskStatus.FAILED)


def problem_of(exception: BaseException | None) -> dict[str, Any]:
    """Describe the failure to clients. Only domain errors reveal the cause."""
    if isinstance(exception, DomainError):
        return {
            "type": f"urn:problem-type:{exception.code}",
            "title": exception.title,
            "detail": str(exception),
        }
    return {
        "type": "urn:problem-type:task-failed",
        "title": "Task failed",
        "detail": "The task did not complete."
        if exception is None
        else "An unexpected error occurred.",
    }


class TaskNotFoundError(NotFoundError):
    code = "task-not-found"
    title = "Task not found"
    message = "There is no task {id}. Tasks are deleted some time after they end."
