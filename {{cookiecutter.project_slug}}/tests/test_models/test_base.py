from uuid import UUID

import pytest
from sqlalchemy import Column, MetaData, String, select
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.base import NAMING_CONVENTION, Base, TableNameMixin, TimestampMixin, UUIDMixin
from src.db.models.item import Item
from src.db.session import Database, ReadOnlySessionError
from src.repositories.item import ItemRepository
from src.utils.text import snake_case


class OrderLine(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    """Made of the base classes and its columns, and no more."""

    # Apart from the service's own tables, which migrations and `alembic check` are about.
    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    __table_args__ = {"prefixes": ["TEMPORARY"]}  # noqa: RUF012 - as SQLAlchemy has it
    name = Column(String, index=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Item", "item"),
        ("OrderLine", "order_line"),
        ("HTTPCall", "http_call"),
        ("V2Item", "v2_item"),
    ],
)
def test_tables_are_named_after_classes(name: str, expected: str) -> None:
    assert snake_case(name) == expected


def test_constraints_have_names_of_our_own() -> None:
    assert OrderLine.__tablename__ == "order_line"
    assert {index.name for index in OrderLine.__table__.indexes} == {"ix_order_line_name"}  # type: ignore[attr-defined]


async def test_a_model_needs_no_more_than_base_classes_and_columns(db: AsyncSession) -> None:
    connection = await db.connection()
    await connection.run_sync(OrderLine.__table__.create)  # type: ignore[attr-defined]
    line = OrderLine(name="Lamp")
    db.add(line)
    await db.flush()

    assert isinstance(line.id, UUID)
    assert line.created_at.tzinfo is not None


async def test_keys_are_in_order_of_creation(db: AsyncSession) -> None:
    items = [Item(name=f"Lamp {n}") for n in range(20)]
    db.add_all(items)
    await db.flush()

    found = (await db.scalars(select(Item).order_by(Item.id))).all()
    assert [item.name for item in found] == [f"Lamp {n}" for n in range(20)]


async def test_a_locked_row_is_read_anew(committing_database: Database) -> None:
    """What the session knows of it from before the lock may be old."""
    async with committing_database.transaction() as session:
        item = await ItemRepository(session).add(Item(name="Lamp"))
    async with committing_database.transaction() as session:
        repository = ItemRepository(session)
        assert await repository.get(item.id) is not None
        async with committing_database.transaction() as other:
            (await ItemRepository(other).get_for_update(item.id) or item).name = "Light"

        found = await repository.get_for_update(item.id)

        assert found is not None
        assert (found.name, found.version) == ("Light", 2)


async def test_a_reading_session_does_not_write(database: Database) -> None:
    async with database.reads() as session:
        session.add(Item(name="Lamp"))
        with pytest.raises(ReadOnlySessionError):
            await session.flush()
