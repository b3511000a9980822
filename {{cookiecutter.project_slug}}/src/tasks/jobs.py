"""Your background tasks. docs/tasks.md shows how to add one."""

from typing import Any
from uuid import UUID

import dramatiq
import structlog

from src.services.item_import import ItemImportService
from src.tasks.context import report_progress, transaction

log = structlog.get_logger(__name__)

BATCH = 100  # rows per transaction; a killed worker loses one batch at most


@dramatiq.actor(actor_name="import_items", queue_name="default", time_limit=600_000, tracked=True)
async def import_items(import_id: str) -> dict[str, Any]:
    """Import the rows of a CSV file. A retry continues where the last attempt stopped."""
    while True:
        async with transaction() as db:
            progress = await ItemImportService.import_batch(db, UUID(import_id), limit=BATCH)
            await report_progress(db, done=progress.done, total=progress.total)
        if progress.is_finished:
            break
    log.info("items_imported", created=progress.created, rejected=progress.rejected)
    return {"import_id": import_id, "created": progress.created, "rejected": progress.rejected}
