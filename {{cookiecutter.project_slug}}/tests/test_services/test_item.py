import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from src.domain.errors import StaleVersionError
from src.domain.item import ItemStatus
from src.schemas.item import ItemCreate, ItemListQuery, ItemUpdate
from src.services.item import ItemService


async def test_create_item(db: AsyncSession) -> None:
    item = await ItemService.create_item(db, ItemCreate(name="Lamp"))

    assert (item.name, item.status, item.version) == ("Lamp", ItemStatus.DRAFT, 1)


async def test_updated_at_is_read_back_without_another_query(db: AsyncSession) -> None:
    item = await ItemService.create_item(db, ItemCreate(name="Lamp"))

    changed = await ItemService.update_item(db, item.id, ItemUpdate(name="Light"))

    assert changed.updated_at >= changed.created_at


async def test_an_outdated_version_is_refused(db: AsyncSession) -> None:
    item = await ItemService.create_item(db, ItemCreate(name="Lamp"))
    await ItemService.update_item(db, item.id, ItemUpdate(name="Light"), frozenset({1}))

    with pytest.raises(StaleVersionError, match="version is 2"):
        await ItemService.update_item(db, item.id, ItemUpdate(name="Glow"), frozenset({1}))


async def test_a_full_page_may_be_the_last(db: AsyncSession) -> None:
    for name in "ab":
        await ItemService.create_item(db, ItemCreate(name=name))

    page = await ItemService.list_items(db, ItemListQuery(limit=2))

    assert [item.name for item in page.items] == ["b", "a"]
    assert page.next_cursor is None
