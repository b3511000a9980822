"""Imports of items from CSV: the example of a long, tracked task."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Request, Response, status

from src.api.accepted import accepted
from src.api.deps import ApiKey, DbSession, ReadSession
from src.api.openapi import problems
from src.db.models.item_import import ItemImport
from src.domain.item_import import ImportFileError, ItemImportNotFoundError
from src.schemas.item_import import ItemImportResponse
from src.schemas.task import TaskAccepted
from src.services.item_import import ItemImportService
from src.tasks import enqueue
from src.tasks.jobs import import_items

router = APIRouter(prefix="/item-imports", tags=["item imports"], dependencies=[ApiKey])

CSV = "text/csv"


async def require_csv(content_type: Annotated[str | None, Header(include_in_schema=False)]) -> None:
    if content_type is None or content_type.partition(";")[0].strip().lower() != CSV:
        raise HTTPException(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, f"Send it as {CSV}.")


@router.post(
    "/",
    status_code=status.HTTP_202_ACCEPTED,
    dependencies=[Depends(require_csv)],
    responses=problems(ImportFileError, 415),
)
async def import_csv(
    content: Annotated[
        bytes, Body(media_type=CSV, examples=["name,description\nLamp,Brass\nChair,\n"])
    ],
    db: DbSession,
    request: Request,
    response: Response,
) -> TaskAccepted:
    """Import the rows of a CSV, 10,000 at most.

    It is in UTF-8 and has a header: `name`, and `description` if there is one.
    """
    item_import = await ItemImportService.start(db, content)
    task_id = await enqueue(db, import_items, str(item_import.id))
    return accepted(request, response, task_id)


@router.get(
    "/{import_id}", response_model=ItemImportResponse, responses=problems(ItemImportNotFoundError)
)
async def get_item_import(import_id: UUID, db: ReadSession) -> ItemImport:
    return await ItemImportService.get(db, import_id)
