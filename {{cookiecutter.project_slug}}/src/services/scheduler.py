from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.scheduler import SchedulerJob, SchedulerLease, SchedulerRun
from src.repositories.scheduler import SchedulerRepository


@dataclass(frozen=True)
class JobHistory:
    id: str
    trigger: str
    next_tick: datetime | None
    runs: Sequence[SchedulerRun]


@dataclass(frozen=True)
class Overview:
    leader: SchedulerLease | None
    jobs: Sequence[JobHistory]


class SchedulerService:
    @staticmethod
    async def overview(db: AsyncSession, *, runs: int) -> Overview:
        """Return the leader, and of each job the next tick and the last `runs`."""
        repository = SchedulerRepository(db)
        jobs = await repository.jobs()
        found = await repository.last_runs(limit=runs)
        return Overview(
            leader=await repository.current_lease(),
            jobs=[_history(job, found) for job in jobs],
        )


def _history(job: SchedulerJob, runs: Sequence[SchedulerRun]) -> JobHistory:
    own = [run for run in runs if run.job == job.id]
    return JobHistory(id=job.id, trigger=job.trigger, next_tick=job.next_tick, runs=own)
