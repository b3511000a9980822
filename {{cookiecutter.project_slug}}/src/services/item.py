from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.item import Item
from src.domain.errors import StaleVersionError
from src.domain.item import ItemNotFoundError, ensure_changeable
from src.repositories.item import ItemRepository
from src.schemas.item import ItemCreate, ItemListQuery, ItemSearchQuery, ItemUpdate


@dataclass(frozen=True)
class Page:
    items: Sequence[Item]
    next_cursor: UUID | None
    total: int | None


class ItemService:
    """The use cases of items. The caller's transaction commits them; nothing here does."""

    @staticmethod
    async def create_item(db: AsyncSession, item_data: ItemCreate) -> Item:
        return await ItemRepository(db).add(Item(**item_data.model_dump()))

    @staticmethod
    async def get_item(db: AsyncSession, item_id: UUID) -> Item:
        """Raises ItemNotFoundError."""
        item = await ItemRepository(db).get(item_id)
        if item is None:
            raise ItemNotFoundError(item_id)
        return item

    @staticmethod
    async def list_items(db: AsyncSession, query: ItemListQuery) -> Page:
        repository = ItemRepository(db)
        # One more than asked for tells whether there is a next page.
        found = await repository.newest(
            status=query.status, before=query.cursor, offset=query.offset, limit=query.limit + 1
        )
        items = found[: query.limit]
        return Page(
            items=items,
            next_cursor=items[-1].id if len(found) > query.limit else None,
            total=await repository.count(status=query.status) if query.total else None,
        )

    @staticmethod
    async def search_items(db: AsyncSession, query: ItemSearchQuery) -> Sequence[Item]:
        return await ItemRepository(db).search(query.q, offset=query.offset, limit=query.limit)

    @staticmethod
    async def update_item(
        db: AsyncSession,
        item_id: UUID,
        changes: ItemUpdate,
        expected_versions: frozenset[int] | None = None,
    ) -> Item:
        """Change what `changes` holds; `expected_versions` are those the caller has seen.

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
    """Fetch the item for this transaction alone, as one of the versions that are expected."""
    item = await repository.get_for_update(item_id)
    if item is None:
        raise ItemNotFoundError(item_id)
    if expected_versions is not None and item.version not in expected_versions:
        raise StaleVersionError(f"The item is at version {item.version} by now.")
    return item
