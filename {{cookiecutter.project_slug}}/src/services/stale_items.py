from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from src.domain.item import ItemStatus, ensure_changeable
from src.repositories.stale_items import StaleItemRepository


class StaleItemService:
    @staticmethod
    async def archive(db: AsyncSession, *, before: datetime, limit: int) -> int:
        """Archive items that nobody has changed since; return how many, `limit` at most."""
        items = await StaleItemRepository(db).lock_stale(before=before, limit=limit)
        for item in items:
            ensure_changeable(item.status, ItemStatus.ARCHIVED)
            item.status = ItemStatus.ARCHIVED
        await db.flush()
        return len(items)
