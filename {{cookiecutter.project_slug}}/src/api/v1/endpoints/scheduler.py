"""The leader, the jobs and their runs."""

from typing import Annotated

from fastapi import APIRouter, Query

from src.api.auth import require
from src.api.deps import ReadSession
from src.domain.principal import Scope
from src.schemas.scheduler import SchedulerInfo
from src.services.scheduler import SchedulerService

router = APIRouter(
    prefix="/scheduler", tags=["scheduler"], dependencies=[require(Scope.SCHEDULER_READ)]
)


@router.get("/jobs", summary="List Scheduled Jobs")
async def scheduler_jobs(
    db: ReadSession,
    runs: Annotated[
        int, Query(ge=0, le=100, description="Number of runs to return for each job.")
    ] = 5,
) -> SchedulerInfo:
    """Return the leader, and each job with its next tick and its last runs, newest first.

    The response is the same from every process, whether or not it is the leader.
    """
    return await SchedulerService.overview(db, runs=runs)
