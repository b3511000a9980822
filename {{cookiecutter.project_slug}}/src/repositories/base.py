"""What every repository can do; a concrete one adds its own queries."""

from typing import Generic, TypeVar
from uuid import UUID

from sqlalchemy import Select, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.base import UUIDMixin

M = TypeVar("M", bound=UUIDMixin)


class Repository(Generic[M]):
    """A subclass names its `model`."""

    model: type[M]
    # Built once per class: composing a statement costs more than sending it.
    _by_id: Select[M]
    _by_id_locked: Select[M]

    def __init_subclass__(cls) -> None:
        cls._by_id = select(cls.model).where(cls.model.id == bindparam("id"))
        # What the session has of the row is from before the lock.
        cls._by_id_locked = cls._by_id.with_for_update().execution_options(populate_existing=True)

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def get(self, key: UUID) -> M | None:
        return await self.session.scalar(self._by_id, {"id": key})

    async def get_for_update(self, key: UUID) -> M | None:
        """Lock the row until the transaction ends, so that what is read here stays true."""
        return await self.session.scalar(self._by_id_locked, {"id": key})

    async def add(self, entity: M) -> M:
        self.session.add(entity)
        await self.session.flush()
        return entity

    async def delete(self, entity: M) -> None:
        await self.session.delete(entity)
        await self.session.flush()
