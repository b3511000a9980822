from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from src.domain.scheduler import RunOutcome


class Run(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    tick: datetime = Field(description="Due time.")
    outcome: RunOutcome
    started_at: datetime
    finished_at: datetime | None
    error: str | None = Field(description="The exception of a failed run.")
    holder: str = Field(description="The process that ran it.")


class Job(BaseModel):
    id: str = Field(examples=["prune_run_history"])
    trigger: str = Field(examples=["cron[hour='3']"])
    next_tick: datetime | None = Field(description="Null if there is no further tick.")
    runs: list[Run] = Field(description="The last runs, newest first.")


class Leader(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    holder: str = Field(
        description="Machine, process and leadership.", examples=["web-1:7:1f3c9a52"]
    )
    acquired_at: datetime
    expires_at: datetime = Field(description="When another process may take over, unless renewed.")


class SchedulerInfo(BaseModel):
    leader: Leader | None = Field(description="Null while no process is the leader.")
    jobs: list[Job]
