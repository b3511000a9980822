from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from src.domain.scheduler import RunOutcome


class Run(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    tick: datetime = Field(description="When it was due.")
    outcome: RunOutcome
    started_at: datetime
    finished_at: datetime | None
    error: str | None = Field(description="What a run that failed raised.")
    holder: str = Field(description="The process that ran it.")


class Job(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["archive_stale_items"])
    trigger: str = Field(examples=["interval[1:00:00]"])
    next_tick: datetime | None = Field(description="Null if there is none to come.")
    runs: list[Run] = Field(description="The last ones, the newest first.")


class Leader(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    holder: str = Field(description="Machine, process and term.", examples=["web-1:7:1f3c9a52"])
    acquired_at: datetime
    expires_at: datetime = Field(description="When another takes over, unless it is renewed.")


class SchedulerInfo(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    leader: Leader | None = Field(description="Null while no process schedules.")
    jobs: list[Job]
