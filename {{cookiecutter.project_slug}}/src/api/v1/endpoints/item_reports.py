"""Reports on items: the worked example of what a job leaves to be read."""

from collections.abc import Sequence
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query

from src.api.deps import ReadSession
from src.api.openapi import problems
from src.db.models.item_report import ItemReport
from src.schemas.item_report import ItemReportResponse, ItemReports
from src.services.item_report import ItemReportService

router = APIRouter(prefix="/item-reports", tags=["item reports"])


@router.get("/", response_model=ItemReports)
async def list_item_reports(
    db: ReadSession,
    limit: Annotated[int, Query(ge=1, le=100, description="How many days.")] = 30,
) -> dict[str, Sequence[ItemReport]]:
    """The latest day first."""
    return {"reports": await ItemReportService.newest(db, limit=limit)}


@router.get("/{day}", response_model=ItemReportResponse, responses=problems(404))
async def get_item_report(day: date, db: ReadSession) -> ItemReport:
    return await ItemReportService.get(db, day)
