from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.item import Item
from src.db.reader import Reader
from src.domain.errors import StaleVersionError
from src.domain.item import ItemNotFoundError, ensure_changeable
from src.repositories.item import ItemFilter, ItemRepository
from src.schemas.item import (
    ItemCreate,
    ItemListQuery,
    ItemMatches,
    ItemPage,
    ItemResponse,
    ItemSearchQuery,
    ItemUpdate,
)


class ItemService:
    """Use cases for items. They never commit: the caller's transaction does."""

    @staticmethod
    async def create_item(db: AsyncSession, item_data: ItemCreate) -> Item:
        return await ItemRepository(db).add(Item(**item_data.model_dump()))

    @staticmethod
    async def get_item(db: Reader, item_id: UUID) -> ItemResponse:
        """Raises ItemNotFoundError."""
        return await ItemRepository(db).read_or_raise(ItemResponse, item_id, ItemNotFoundError)

    @staticmethod
    async def list_items(db: Reader, query: ItemListQuery) -> ItemPage:
        """Raises InvalidCursorError."""
        repository = ItemRepository(db)
        wanted = ItemFilter(query.status, query.created_from, query.created_before)
        items, next_cursor = await repository.list_page(
            wanted, sort=query.sort, cursor=query.cursor, offset=query.offset, limit=query.limit
        )
        total = await repository.count(wanted) if query.total else None
        return ItemPage(items=items, next_cursor=next_cursor, total=total)

    @staticmethod
    async def search_items(db: AsyncSession, query: ItemSearchQuery) -> ItemMatches:
        repository = ItemRepository(db)
        items = await repository.search(query.q, offset=query.offset, limit=query.limit)
        return ItemMatches(items=items)

    @staticmethod
    async def update_item(
        db: AsyncSession,
        item_id: UUID,
        changes: ItemUpdate,
        expected_versions: frozenset[int] | None = None,
    ) -> Item:
        """Change the given fields, if the item has one of `expected_versions`.

        Raises ItemNotFoundError, StaleVersionError, ItemArchivedError or ItemTransitionError.
        """
        repository = ItemRepository(db)
        item = await _lock(repository, item_id, expected_versions)
        given = changes.model_dump()
        ensure_changeable(item.status, given.get("status"))
        for name, value in given.items():
            setattr(item, name, value)
        return await repository.add(item)

    @staticmethod
    async def delete_item(
        db: AsyncSession, item_id: UUID, expected_versions: frozenset[int] | None = None
    ) -> None:
        """Raises ItemNotFoundError or StaleVersionError."""
        repository = ItemRepository(db)
        await repository.delete(await _lock(repository, item_id, expected_versions))


async def _lock(
    repository: ItemRepository, item_id: UUID, expected_versions: frozenset[int] | None
) -> Item:
    """Read and lock the item, if it has one of the expected versions."""
    item = await repository.get_or_raise(item_id, ItemNotFoundError, for_update=True)
    if expected_versions is not None and item.version not in expected_versions:
        raise StaleVersionError(version=item.version)
    return item
