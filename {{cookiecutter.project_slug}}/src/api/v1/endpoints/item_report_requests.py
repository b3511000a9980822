"""Reports on items, made by a task."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response, status

from src.api.accepted import accepted
from src.api.deps import ApiKey, DbSession
from src.api.openapi import problems
from src.schemas.item_report import ItemReportCreate
from src.schemas.task import TaskAccepted
from src.tasks import enqueue
from src.tasks.jobs import make_item_report

router = APIRouter(prefix="/item-reports", tags=["item reports"], dependencies=[ApiKey])


@router.post("/", status_code=status.HTTP_202_ACCEPTED, responses=problems(400, 401, 413))
async def request_item_report(
    wanted: ItemReportCreate, db: DbSession, request: Request, response: Response
) -> TaskAccepted:
    """Have the report on a day made, today's unless another is named."""
    day = wanted.day or datetime.now(UTC).date()
    return accepted(request, response, await enqueue(db, make_item_report, day.isoformat()))
