from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from src.domain.item import ItemStatus
from src.repositories.stale_items import StaleItemRepository


class StaleItemService:
    @staticmethod
    async def archive(db: AsyncSession, *, before: datetime, limit: int) -> int:
        """Archive up to `limit` items that have not changed since `before`. Return the number."""
        items = await StaleItemRepository(db).lock_stale(before=before, limit=limit)
        for item in items:
            item.status = ItemStatus.ARCHIVED
        await db.flush()
        return len(items)
