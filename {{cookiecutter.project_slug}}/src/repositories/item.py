from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, func, select

from src.db.models.item import SEARCH_CONFIG, SEARCH_DOCUMENT, Item
from src.domain.item import ItemStatus
from src.repositories.base import Repository


class ItemRepository(Repository[Item]):
    model = Item

    async def list_page(
        self, *, status: ItemStatus | None, cursor: UUID | None, offset: int, limit: int
    ) -> tuple[Sequence[Item], UUID | None]:
        statement = select(Item).where(*_has(status))
        return await self.paginate(statement, cursor=cursor, offset=offset, limit=limit)

    async def add_all(self, items: Sequence[Item]) -> None:
        """Add up to 1,000 items with one INSERT. Their IDs have the order of `items`."""
        self.session.add_all(items)
        await self.session.flush()

    async def count(self, *, status: ItemStatus | None) -> int:
        statement = select(func.count()).select_from(Item).where(*_has(status))
        return await self.session.scalar(statement) or 0

    async def search(self, text: str, *, offset: int, limit: int) -> Sequence[Item]:
        """Return items with all words of `text`, best match first. The last word may be a prefix."""
        query = func.to_tsquery(SEARCH_CONFIG, _prefix_query(text))
        statement = (
            select(Item)
            .where(SEARCH_DOCUMENT.op("@@")(query))
            .order_by(func.ts_rank(SEARCH_DOCUMENT, query).desc(), Item.id.desc())
            .offset(offset)
            .limit(limit)
        )
        return (await self.session.scalars(statement)).all()


def _has(status: ItemStatus | None) -> list[ColumnElement[bool]]:
    return [] if status is None else [Item.status == status]


def _prefix_query(text: str) -> str:
    """Convert words to a `tsquery`. Quotes prevent words from being operators."""
    # There may be no word: Python strips some characters that Pydantic does not.
    words = [word.replace("\\", "\\\\").replace("'", "''") for word in text.split()]
    return " & ".join(f"'{word}'" for word in words) + (":*" if words else "")
