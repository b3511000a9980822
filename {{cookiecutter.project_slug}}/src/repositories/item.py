from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select

from src.db.models.item import SEARCH_CONFIG, SEARCH_DOCUMENT, Item
from src.domain.item import ItemStatus
from src.repositories.base import Repository


class ItemRepository(Repository[Item]):
    model = Item

    async def newest(
        self, *, status: ItemStatus | None, before: UUID | None, offset: int, limit: int
    ) -> Sequence[Item]:
        """Return items, the newest first: UUIDv7 keys are in order of creation.

        `before` starts right behind that key, which costs the same on any page; `offset` reads and
        throws away what it skips.
        """
        statement = select(Item).order_by(Item.id.desc()).offset(offset).limit(limit)
        if status is not None:
            statement = statement.where(Item.status == status)
        if before is not None:
            statement = statement.where(Item.id < before)
        return (await self.session.scalars(statement)).all()

    async def add_all(self, items: Sequence[Item]) -> None:
        """Add up to a thousand items with one INSERT; their keys are in the order of `items`."""
        self.session.add_all(items)
        await self.session.flush()

    async def count(self, *, status: ItemStatus | None) -> int:
        statement = select(func.count()).select_from(Item)
        if status is not None:
            statement = statement.where(Item.status == status)
        return await self.session.scalar(statement) or 0

    async def search(self, text: str, *, offset: int, limit: int) -> Sequence[Item]:
        """Return the items with all the words of `text`, the best match first.

        The last word matches as a prefix too, for those who are still typing.
        """
        query = func.to_tsquery(SEARCH_CONFIG, _prefix_query(text))
        statement = (
            select(Item)
            .where(SEARCH_DOCUMENT.op("@@")(query))
            .order_by(func.ts_rank(SEARCH_DOCUMENT, query).desc(), Item.id.desc())
            .offset(offset)
            .limit(limit)
        )
        return (await self.session.scalars(statement)).all()


def _prefix_query(text: str) -> str:
    """Write words as a `tsquery`, each quoted, so that none is taken for an operator."""
    # An empty query finds nothing. Python's white space has characters that Pydantic's has not.
    words = [word.replace("\\", "\\\\").replace("'", "''") for word in text.split()]
    return " & ".join(f"'{word}'" for word in words) + (":*" if words else "")
