import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from src.domain.task import TaskStatus


class TaskAccepted(BaseModel):
    task_id: uuid.UUID = Field(description="What to follow, at `Location`.")


class TaskProblem(BaseModel):
    type: str = Field(examples=["urn:problem-type:task-failed"])
    title: str
    detail: str


class TaskResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    actor: str = Field(description="What is done.", examples=["import_items"])
    status: TaskStatus
    attempts: int = Field(description="How often it was begun.")
    done: int | None = Field(description="How far it is; null if it does not tell.")
    total: int | None = Field(description="Of how many.")
    result: Any | None = Field(description="What it returned, once it is done.")
    problem: TaskProblem | None = Field(description="Why it failed, if it has.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
