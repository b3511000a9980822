import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from src.domain.task import TaskStatus


class TaskAccepted(BaseModel):
    task_id: uuid.UUID = Field(description="Task id; poll the `Location` URL.")


class TaskProblem(BaseModel):
    type: str = Field(examples=["urn:problem-type:task-failed"])
    title: str
    detail: str


class TaskResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    actor: str = Field(description="Actor name.", examples=["send_invoice"])
    status: TaskStatus
    attempts: int = Field(description="Number of attempts.")
    done: int | None = Field(description="Units completed; null if not reported.")
    total: int | None = Field(description="Total units of work.")
    result: Any | None = Field(description="Return value of the task.")
    problem: TaskProblem | None = Field(description="Why it failed.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
