"""Imports of items from CSV files: the example of a long, tracked task."""

from typing import Annotated
from uuid import UUID

from fastapi import (
    APIRouter,
    Body,
    Depends,
    Header,
    HTTPException,
    Path,
    Request,
    Response,
    status,
)

from src.api.accepted import accepted
from src.api.auth import require
from src.api.deps import DbReader, DbSession
from src.api.openapi import problems
from src.domain.item_import import ImportFileError, ItemImportNotFoundError
from src.domain.principal import Scope
from src.schemas.item_import import ItemImportResponse
from src.schemas.task import TaskAccepted
from src.services.item_import import ItemImportService
from src.tasks import enqueue
from src.tasks.jobs import import_items

router = APIRouter(prefix="/item-imports", tags=["item imports"])

CSV = "text/csv"


async def require_csv(content_type: Annotated[str | None, Header(include_in_schema=False)]) -> None:
    if content_type is None or content_type.partition(";")[0].strip().lower() != CSV:
        raise HTTPException(
            status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, f"Send the header Content-Type: {CSV}."
        )


@router.post(
    "/",
    status_code=status.HTTP_202_ACCEPTED,
    dependencies=[require(Scope.ITEMS_WRITE), Depends(require_csv)],
    responses=problems(ImportFileError, 415),
    summary="Import Items from CSV",
)
async def import_csv(
    content: Annotated[
        bytes, Body(media_type=CSV, examples=["name,description\nLamp,Brass\nChair,\n"])
    ],
    db: DbSession,
    request: Request,
    response: Response,
) -> TaskAccepted:
    """Accept a CSV file and import its rows in a background task.

    Send the file as the request body, not as a multipart form. It is encoded in UTF-8. Its header
    has the column `name` and may have the column `description`. At most 10,000 rows are allowed. An invalid row is rejected, and the other rows
    are imported. Poll the URL in the header `Location` to see the progress.
    """
    item_import = await ItemImportService.start(db, content)
    task_id = await enqueue(db, import_items, str(item_import.id))
    return accepted(request, response, task_id)


@router.get(
    "/{import_id}",
    dependencies=[require(Scope.ITEMS_READ)],
    responses=problems(ItemImportNotFoundError),
)
async def get_item_import(
    import_id: Annotated[UUID, Path(description="ID of the import.")], db: DbReader
) -> ItemImportResponse:
    """Return the progress of an import and the reasons for rejected rows."""
    return await ItemImportService.get(db, import_id)
