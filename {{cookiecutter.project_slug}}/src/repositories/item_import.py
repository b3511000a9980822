from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import undefer

from src.db.models.item_import import ItemImport
from src.repositories.base import Repository

_WITH_CONTENT = (
    select(ItemImport)
    .where(ItemImport.id == bindparam("id"))
    .options(undefer(ItemImport.content))
    .with_for_update()
    .execution_options(populate_existing=True)
)


class ItemImportRepository(Repository[ItemImport]):
    model = ItemImport

    async def get_content_for_update(self, key: UUID) -> ItemImport | None:
        """As `get_for_update`, with the file, which other queries leave out."""
        return await self.session.scalar(_WITH_CONTENT, {"id": key})
