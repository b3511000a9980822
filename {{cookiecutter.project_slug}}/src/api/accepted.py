"""The response 202 of endpoints that enqueue a tracked task."""

from uuid import UUID

from fastapi import Request, Response

from src.schemas.task import TaskAccepted


def accepted(request: Request, response: Response, task_id: str) -> TaskAccepted:
    """Return the task's id, and in `Location` the URL to poll."""
    location = request.url_for("get_task", task_id=task_id).path
    response.headers["Location"] = location
    response.headers["Retry-After"] = "1"
    return TaskAccepted(task_id=UUID(task_id))
