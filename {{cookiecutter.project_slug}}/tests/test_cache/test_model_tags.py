"""Changes that PostgreSQL makes by itself, or in a bulk statement, invalidate the models' tags."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from sqlalchemy import (
    Column,
    Executable,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    delete,
    insert,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from src.cache import Cache, MemoryBackend, cached, use_cache
from src.db.base import Base, TableNameMixin
from src.db.session import Database

METADATA = MetaData()


class SampleRack(Base, TableNameMixin):
    metadata = METADATA
    id: Mapped[int] = mapped_column(primary_key=True)


genres = Table(
    "sample_volume_genre",
    METADATA,
    Column("volume_id", ForeignKey("sample_volume.id", ondelete="CASCADE"), primary_key=True),
    Column("genre_id", ForeignKey("sample_genre.id", ondelete="CASCADE"), primary_key=True),
)

readers = Table(
    "sample_volume_reader",
    METADATA,
    Column("volume_id", ForeignKey("sample_volume.id", ondelete="CASCADE"), primary_key=True),
    Column("reader_id", ForeignKey("sample_reader.id"), primary_key=True),
)


class SampleGenre(Base, TableNameMixin):
    metadata = METADATA
    id: Mapped[int] = mapped_column(primary_key=True)


class SampleReader(Base, TableNameMixin):
    metadata = METADATA
    id: Mapped[int] = mapped_column(primary_key=True)
    volumes: Mapped[list["SampleVolume"]] = relationship(
        secondary=readers, back_populates="readers"
    )


class SampleVolume(Base, TableNameMixin):
    metadata = METADATA
    __cache_tags__ = ("volumes", "volume:{id}", "shelf-volumes:{shelf_id}")
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("sample_rack.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(default="")
    genres: Mapped[list[SampleGenre]] = relationship(secondary=genres)
    readers: Mapped[list[SampleReader]] = relationship(secondary=readers, back_populates="volumes")
    pages: Mapped[list["SamplePage"]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True
    )


class SamplePage(Base, TableNameMixin):
    metadata = METADATA
    __cache_tags__ = ("page:{id}", "volume-pages:{volume_id}")
    id: Mapped[int] = mapped_column(primary_key=True)
    volume_id: Mapped[int] = mapped_column(ForeignKey("sample_volume.id", ondelete="CASCADE"))


class SampleLoan(Base, TableNameMixin):
    metadata = METADATA
    __cache_tags__ = ("loan:{id}",)
    id: Mapped[int] = mapped_column(primary_key=True)
    volume_id: Mapped[int | None] = mapped_column(
        ForeignKey("sample_volume.id", ondelete="SET NULL")
    )


reads: set[str] = set()


@cached(tags=["volume:1", "volumes", "shelf-volumes:1"])
async def read_volume() -> None:
    reads.add("volume")


@cached(tags=["{kind}:1"])
async def read(kind: str) -> None:
    reads.add(kind)


async def invalidated() -> set[str]:
    """Return what the cache no longer has."""
    reads.clear()
    await read_volume()
    for kind in ("page", "volume-pages", "loan"):
        await read(kind)
    return {*reads}


@pytest.fixture
async def library(committing_database: Database) -> AsyncGenerator[Database]:
    engine = committing_database.writes.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    with use_cache(Cache(MemoryBackend(), ttl=60)):
        async with committing_database.transaction() as db:
            volume = SampleVolume(
                id=1, shelf_id=1, genres=[SampleGenre(id=1)], readers=[SampleReader(id=1)]
            )
            db.add_all([SampleRack(id=1), volume])
            await db.flush()
            db.add_all([SamplePage(id=1, volume_id=1), SampleLoan(id=1, volume_id=1)])
        await invalidated()
        assert await invalidated() == set()
        yield committing_database
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.drop_all)


async def delete_row(db: AsyncSession) -> None:
    await db.delete(await db.get_one(SampleRack, 1))


async def remove_orphan(db: AsyncSession) -> None:
    volume = await db.get_one(SampleVolume, 1, options=[selectinload(SampleVolume.pages)])
    volume.pages.clear()


async def move_page(db: AsyncSession) -> None:
    db.add(SampleVolume(id=2, shelf_id=1, pages=[await db.get_one(SamplePage, 1)]))


async def delete_genre(db: AsyncSession) -> None:
    await db.delete(await db.get_one(SampleGenre, 1))


async def delete_reader(db: AsyncSession) -> None:
    await db.delete(await db.get_one(SampleReader, 1))


async def clear_volumes(db: AsyncSession) -> None:
    reader = await db.get_one(SampleReader, 1, options=[selectinload(SampleReader.volumes)])
    reader.volumes.clear()


async def upsert(db: AsyncSession) -> None:
    row = postgresql.insert(SampleVolume).values(id=1, shelf_id=1)
    await db.execute(row.on_conflict_do_update(index_elements=["id"], set_={"title": "new"}))


ALL = {"volume", "page", "volume-pages", "loan"}
PAGE = {"page", "volume-pages"}
STATEMENTS: dict[str, tuple[Executable, set[str]]] = {
    "delete": (delete(SampleRack), ALL),
    "update": (update(SamplePage).values(volume_id=1), PAGE),
    "insert": (insert(SampleVolume).values(id=2, shelf_id=1), {"volume"}),
    "text": (text("DELETE FROM sample_page WHERE id = 1"), PAGE),
    "text with cascade": (text("delete from sample_rack"), ALL),
    "text that returns": (text("DELETE FROM sample_page RETURNING id").columns(id=Integer), PAGE),
    "text that reads": (text("SELECT 1 FROM sample_page FOR UPDATE"), set()),
    "association": (delete(genres), {"volume"}),
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_bulk_statement_invalidates_all_rows_of_the_table(
    library: Database, name: str
) -> None:
    """After the commit, together with the rows that refer to a deleted one."""
    statement, expected = STATEMENTS[name]
    async with library.transaction() as db:
        await db.execute(statement)
        await db.rollback()
    assert await invalidated() == set()
    async with library.transaction() as db:
        await db.execute(statement)
    assert await invalidated() == expected


async def test_statement_in_autocommit_mode_invalidates(library: Database) -> None:
    async with library.reads() as db:
        await db.execute(update(SamplePage).values(volume_id=1))
    assert await invalidated() == PAGE


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (delete_row, ALL),
        (remove_orphan, {"volume", *PAGE}),
        (move_page, {"volume", *PAGE}),
        (delete_genre, {"volume"}),
        (delete_reader, {"volume"}),
        (clear_volumes, {"volume"}),
        (upsert, {"volume"}),
    ],
)
async def test_row_that_the_database_changes_is_invalidated(
    library: Database, change: Callable[[AsyncSession], Awaitable[None]], expected: set[str]
) -> None:
    async with library.transaction() as db:
        await change(db)
    assert await invalidated() == expected


@pytest.mark.parametrize(
    ("tags", "message"), [(("a:{typo}",), "no such column"), ("a", "must be a list")]
)
def test_invalid_tags_of_a_model_are_refused(tags: object, message: str) -> None:
    class Separate(DeclarativeBase):
        pass

    class Wrong(Separate):
        __tablename__ = "wrong"
        __cache_tags__ = tags
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(TypeError, match=message):
        Separate.registry.configure()
    Separate.registry.dispose()
