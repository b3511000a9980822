from uuid import UUID

from sqlalchemy.orm import undefer

from src.db.models.item_import import ItemImport
from src.repositories.base import Repository


class ItemImportRepository(Repository[ItemImport]):
    model = ItemImport

    async def get_content_for_update(self, key: UUID) -> ItemImport | None:
        """Like `get_for_update`, but with `content`, which other queries do not load."""
        options = [undefer(ItemImport.content)]
        return await self.session.get(
            ItemImport, key, options=options, with_for_update=True, populate_existing=True
        )
