from collections.abc import Sequence
from itertools import islice
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.item import Item
from src.db.models.item_import import ItemImport
from src.db.reader import Reader
from src.domain.item_import import (
    MAX_REJECTIONS,
    ItemImportNotFoundError,
    Progress,
    Row,
    count_rows,
    read_rows,
)
from src.repositories.item import ItemRepository
from src.repositories.item_import import ItemImportRepository
from src.schemas.item import ItemCreate
from src.schemas.item_import import ItemImportResponse


class ItemImportService:
    @staticmethod
    async def start(db: AsyncSession, content: bytes) -> ItemImport:
        """Store a CSV file, so that `import_batch` can import its rows. Raises ImportFileError."""
        return await ItemImportRepository(db).add(
            ItemImport(content=content, total=count_rows(content))
        )

    @staticmethod
    async def get(db: Reader, import_id: UUID) -> ItemImportResponse:
        """Raises ItemImportNotFoundError."""
        return await ItemImportRepository(db).read_or_raise(
            ItemImportResponse, import_id, ItemImportNotFoundError
        )

    @staticmethod
    async def import_batch(db: AsyncSession, import_id: UUID, *, limit: int) -> Progress:
        """Import up to `limit` of the remaining rows. Raises ItemImportNotFoundError.

        The import is locked until the transaction ends. Items and counts commit together.
        """
        repository = ItemImportRepository(db)
        current = await repository.get_content_for_update(import_id)
        if current is None:
            raise ItemImportNotFoundError(id=import_id)
        if current.done < current.total:
            rows = islice(read_rows(current.content), current.done, current.done + limit)
            await _import(db, current, [*rows])
            await repository.add(current)
        return Progress(
            done=current.done,
            total=current.total,
            created=current.done - current.rejected,
            rejected=current.rejected,
            is_finished=current.done == current.total,
        )


async def _import(db: AsyncSession, current: ItemImport, rows: Sequence[Row]) -> None:
    items: list[Item] = []
    rejections: list[dict[str, Any]] = []
    for row in rows:
        try:
            items.append(Item(**ItemCreate.model_validate(row.cells).model_dump()))
        except ValidationError as error:
            rejections.append({"row": row.number, "detail": _error_text(error)})
    await ItemRepository(db).add_all(items)
    current.done += len(rows)
    current.rejected += len(rejections)
    current.rejections = [*current.rejections, *rejections][:MAX_REJECTIONS]
    if current.done == current.total:
        current.content = b""


def _error_text(error: ValidationError) -> str:
    reasons = []
    for each in error.errors():
        # Pydantic's own message for NUL contains a regular expression.
        reason = "NUL is not allowed" if "\0" in str(each["input"]) else each["msg"]
        reasons.append(f"{each['loc'][0]}: {reason}")
    return "; ".join(reasons)
