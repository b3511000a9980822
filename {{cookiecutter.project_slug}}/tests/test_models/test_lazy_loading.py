"""Code that reads what is not loaded gets an error that says what to do."""

from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import ForeignKey, MetaData, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship, selectinload

from src.db.base import NAMING_CONVENTION, Base, TableNameMixin, TimestampMixin, UUIDMixin
from src.db.lazy_loading import NotLoadedError
from src.domain.errors import NotFoundError
from src.repositories.base import Repository

METADATA = MetaData(naming_convention=NAMING_CONVENTION)
TEMPORARY = {"prefixes": ["TEMPORARY"]}


class SampleShelf(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    metadata = METADATA
    __table_args__ = TEMPORARY
    name: Mapped[str]
    notes: Mapped[str | None] = mapped_column(deferred=True)
    boxes: Mapped[list["SampleBox"]] = relationship(back_populates="shelf")


class SampleBox(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    metadata = METADATA
    __table_args__ = TEMPORARY
    __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012 - as SQLAlchemy declares it
    text: Mapped[str] = mapped_column(default="")
    shelf_id: Mapped[UUID] = mapped_column(ForeignKey("sample_shelf.id"))
    shelf: Mapped[SampleShelf] = relationship(back_populates="boxes")


class BoxResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: UUID


class ShelfResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    boxes: list[BoxResponse]


@pytest.fixture
async def shelf(db: AsyncSession) -> SampleShelf:
    await (await db.connection()).run_sync(METADATA.create_all)
    db.add(SampleShelf(name="A", boxes=[SampleBox()]))
    await db.flush()
    db.expunge_all()
    return (await db.scalars(select(SampleShelf))).one()


@pytest.mark.parametrize("for_update", [False, True])
async def test_a_repository_accepts_options(
    db: AsyncSession, shelf: SampleShelf, *, for_update: bool
) -> None:
    class ShelfRepository(Repository[SampleShelf]):
        model = SampleShelf

    options = selectinload(SampleShelf.boxes)
    loaded = await ShelfRepository(db).get_or_raise(
        shelf.id, NotFoundError, options, for_update=for_update
    )

    assert len(ShelfResponse.model_validate(loaded).boxes) == 1


async def test_a_relationship(db: AsyncSession, shelf: SampleShelf) -> None:
    with pytest.raises(ValidationError, match=r"\.options\(selectinload\(SampleShelf\.boxes\)\)"):
        ShelfResponse.model_validate(shelf)

    await db.refresh(shelf, ["boxes"])
    assert len(ShelfResponse.model_validate(shelf).boxes) == 1
    db.expunge_all()
    box = (await db.scalars(select(SampleBox))).one()
    with pytest.raises(NotLoadedError, match=r"^`SampleBox\.shelf` is not loaded"):
        _ = box.shelf
    loaded = (await db.scalars(select(SampleShelf).options(selectinload(SampleShelf.boxes)))).one()
    assert loaded.boxes == [box]
    assert box.shelf is loaded


async def test_a_deferred_or_expired_attribute(db: AsyncSession, shelf: SampleShelf) -> None:
    with pytest.raises(NotLoadedError, match=r'db\.refresh\(entity, \["notes"\]\)'):
        _ = shelf.notes
    await db.refresh(shelf, ["notes"])
    assert shelf.notes is None

    async with db.begin_nested() as savepoint:
        shelf.name = "B"
        await db.flush()
        await savepoint.rollback()
    with pytest.raises(NotLoadedError, match="has expired after a rollback"):
        _ = shelf.name
    await db.refresh(shelf)
    assert shelf.name == "A"


async def test_server_values_are_loaded_after_each_flush(
    db: AsyncSession, shelf: SampleShelf
) -> None:
    (box,) = (await db.scalars(select(SampleBox))).all()
    box.text = shelf.name = "C"

    await db.flush()

    assert box.updated_at == shelf.updated_at
