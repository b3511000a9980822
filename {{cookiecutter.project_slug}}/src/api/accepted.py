"""The answer 202 of endpoints that leave the work to a task."""

from uuid import UUID

from fastapi import Request, Response

from src.schemas.task import TaskAccepted


def accepted(request: Request, response: Response, task_id: str) -> TaskAccepted:
    """Name the task, and where to follow it."""
    location = request.url_for("get_task", task_id=task_id).path
    response.headers["Location"] = location
    response.headers["Retry-After"] = "1"
    return TaskAccepted(task_id=UUID(task_id))
