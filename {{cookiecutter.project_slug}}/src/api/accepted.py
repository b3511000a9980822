"""The 202 response of endpoints that enqueue a tracked task."""

from uuid import UUID

from fastapi import Request, Response

from src.schemas.task import TaskAccepted


def accepted(request: Request, response: Response, task_id: str) -> TaskAccepted:
    """Return the task's ID, and set `Location` to the URL that reports its state."""
    location = request.url_for("get_task", task_id=task_id).path
    response.headers["Location"] = location
    response.headers["Retry-After"] = "1"
    return TaskAccepted(task_id=UUID(task_id))
