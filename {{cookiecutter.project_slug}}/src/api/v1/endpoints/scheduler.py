"""A look at what the scheduler does, in whichever process it leads."""

from typing import Annotated

from fastapi import APIRouter, Query

from src.api.deps import ApiKey, ReadSession
from src.schemas.scheduler import SchedulerInfo
from src.services.scheduler import Overview, SchedulerService

router = APIRouter(prefix="/scheduler", tags=["scheduler"], dependencies=[ApiKey])


@router.get("/jobs", response_model=SchedulerInfo)
async def scheduler_jobs(
    db: ReadSession,
    runs: Annotated[int, Query(ge=0, le=100, description="How many runs of each job.")] = 5,
) -> Overview:
    """Who leads; of each job the next tick and the last runs."""
    return await SchedulerService.overview(db, runs=runs)
