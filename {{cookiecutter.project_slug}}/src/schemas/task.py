import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from src.domain.task import TaskStatus


class TaskAccepted(BaseModel):
    task_id: uuid.UUID = Field(description="ID of the task. Poll the URL in `Location`.")


class TaskProblem(BaseModel):
    type: str = Field(
        description="Identifies the kind of error.", examples=["urn:problem-type:task-failed"]
    )
    title: str = Field(description="Name of the kind of error.", examples=["Task failed"])
    detail: str = Field(description="What went wrong.", examples=["An unexpected error occurred."])


class TaskResponse(BaseModel):
    id: uuid.UUID = Field(description="ID of the task.")
    actor: str = Field(
        description="Name of the actor, which is the function that runs the task.",
        examples=["send_invoice"],
    )
    status: TaskStatus = Field(
        description="`queued` before each attempt, `running` during it, then `succeeded` or `failed`.",
        examples=["running"],
    )
    attempts: int = Field(description="Number of attempts started so far.", examples=[1])
    done: int | None = Field(
        description="Units of work completed; null if the task does not report progress.",
        examples=[100],
    )
    total: int | None = Field(
        description="Units of work in total; null if the task does not report it.", examples=[250]
    )
    result: Any | None = Field(description="Return value of the task; null until it has succeeded.")
    problem: TaskProblem | None = Field(
        description="Why the task failed; null unless its status is `failed`."
    )
    created_at: datetime = Field(description="When the task was enqueued.")
    started_at: datetime | None = Field(description="When the first attempt started.")
    finished_at: datetime | None = Field(description="When the task succeeded or failed.")
