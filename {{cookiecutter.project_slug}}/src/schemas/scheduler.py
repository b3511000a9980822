from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from src.domain.scheduler import RunOutcome


class Run(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    tick: datetime = Field(description="When the run was due.")
    outcome: RunOutcome = Field(
        description=(
            "`lost`: the process died during the run, or could not record the outcome."
            " `cancelled`: the process stopped or lost leadership."
            " `missed`: the tick came too late. `skipped`: the previous run had not finished."
        ),
        examples=["succeeded"],
    )
    started_at: datetime = Field(description="When the tick was claimed.")
    finished_at: datetime | None = Field(description="When the outcome was recorded.")
    error: str | None = Field(
        description="The exception of a failed run.", examples=["ValueError: no recipients"]
    )
    holder: str = Field(
        description="The leader that claimed the tick.", examples=["web-1:7:1f3c9a52"]
    )


class Job(BaseModel):
    id: str = Field(description="The `id` of `add_job()`.", examples=["prune_run_history"])
    trigger: str = Field(description="When the job runs.", examples=["cron[hour='3']"])
    next_tick: datetime | None = Field(
        description="When the next run is due; null if there is none."
    )
    runs: list[Run] = Field(description="The last runs, newest first.")


class Leader(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    holder: str = Field(
        description="Identifies the leader: host name, process ID and a random part.",
        examples=["web-1:7:1f3c9a52"],
    )
    acquired_at: datetime = Field(description="When the process became the leader.")
    expires_at: datetime = Field(
        description="When another process can become the leader, unless the lease is renewed."
    )


class SchedulerInfo(BaseModel):
    leader: Leader | None = Field(description="The leader; null if there is none.")
    jobs: list[Job] = Field(description="The jobs, by `id`.")
