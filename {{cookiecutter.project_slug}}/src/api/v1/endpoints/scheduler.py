"""Inspect the scheduler, whichever process is the leader."""

from typing import Annotated

from fastapi import APIRouter, Query

from src.api.deps import ApiKey, ReadSession
from src.schemas.scheduler import SchedulerInfo
from src.services.scheduler import SchedulerService

router = APIRouter(prefix="/scheduler", tags=["scheduler"], dependencies=[ApiKey])


@router.get("/jobs")
async def scheduler_jobs(
    db: ReadSession,
    runs: Annotated[int, Query(ge=0, le=100, description="Number of runs of each job.")] = 5,
) -> SchedulerInfo:
    """The leader, and of each job the next tick and the latest runs."""
    return await SchedulerService.overview(db, runs=runs)
