from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select

from src.db.models.item import Item
from src.domain.staleness import ARCHIVABLE
from src.repositories.item import ItemRepository


class StaleItemRepository(ItemRepository):
    async def lock_stale(self, *, before: datetime, limit: int) -> Sequence[Item]:
        """Lock items that nobody has changed since; leave those out that somebody changes now."""
        statement = (
            select(Item)
            .where(Item.status.in_(ARCHIVABLE), Item.updated_at < before)
            .order_by(Item.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return (await self.session.scalars(statement)).all()
