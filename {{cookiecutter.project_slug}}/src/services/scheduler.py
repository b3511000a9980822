from sqlalchemy.ext.asyncio import AsyncSession

from src.repositories.scheduler import SchedulerRepository
from src.schemas.scheduler import Job, Leader, Run, SchedulerInfo


class SchedulerService:
    @staticmethod
    async def overview(db: AsyncSession, *, runs: int) -> SchedulerInfo:
        """Return the leader, and each job with its next tick and its last `runs` runs."""
        repository = SchedulerRepository(db)
        jobs = await repository.jobs()
        found = await repository.last_runs(limit=runs)
        lease = await repository.current_lease()
        return SchedulerInfo(
            leader=lease and Leader.model_validate(lease),
            jobs=[
                Job(
                    id=job.id,
                    trigger=job.trigger,
                    next_tick=job.next_tick,
                    runs=[Run.model_validate(run) for run in found if run.job == job.id],
                )
                for job in jobs
            ],
        )
