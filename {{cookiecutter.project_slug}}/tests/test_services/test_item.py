import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from src.domain.errors import StaleVersionError
from src.schemas.item import ItemCreate, ItemUpdate
from src.services.item import ItemService


async def test_an_outdated_version_is_refused(db: AsyncSession) -> None:
    item = await ItemService.create_item(db, ItemCreate(name="Lamp"))
    await ItemService.update_item(db, item.id, ItemUpdate(name="Light"), frozenset({1}))

    with pytest.raises(StaleVersionError, match="version is 2"):
        await ItemService.update_item(db, item.id, ItemUpdate(name="Glow"), frozenset({1}))
