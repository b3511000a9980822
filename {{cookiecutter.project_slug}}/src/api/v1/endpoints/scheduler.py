"""Inspect the scheduler, whichever process is the leader."""

from typing import Annotated

from fastapi import APIRouter, Query

from src.api.deps import ApiKey, ReadSession
from src.schemas.scheduler import SchedulerInfo
from src.services.scheduler import Overview, SchedulerService

router = APIRouter(prefix="/scheduler", tags=["scheduler"], dependencies=[ApiKey])


@router.get("/jobs", response_model=SchedulerInfo)
async def scheduler_jobs(
    db: ReadSession,
    runs: Annotated[int, Query(ge=0, le=100, description="Number of runs of each job.")] = 5,
) -> Overview:
    """The leader, and of each job the next tick and the latest runs."""
    return await SchedulerService.overview(db, runs=runs)
