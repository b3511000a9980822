from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select

from src.db.models.item import Item
from src.domain.item import TRANSITIONS, ItemStatus
from src.repositories.base import Repository

ARCHIVABLE = [
    status for status, following in TRANSITIONS.items() if ItemStatus.ARCHIVED in following
]


class StaleItemRepository(Repository[Item]):
    model = Item

    async def lock_stale(self, *, before: datetime, limit: int) -> Sequence[Item]:
        """Lock items that have not changed since `before`. Skip items that others have locked."""
        statement = (
            select(Item)
            .where(Item.status.in_(ARCHIVABLE), Item.updated_at < before)
            .order_by(Item.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return (await self.session.scalars(statement)).all()
