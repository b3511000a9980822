"""Models that name their tags invalidate them once a change is committed."""

from collections.abc import AsyncGenerator, Iterator

import pytest
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column

from src.cache import Cache, MemoryBackend, use_cache
from src.db.base import Base
from src.db.session import Database


class Book(Base):
    metadata = MetaData()
    __tablename__ = "book"
    __cache_tags__ = ("books", "book:{id}", "shelf:{shelf}")
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf: Mapped[str]


class Recording(MemoryBackend):
    def __init__(self) -> None:
        super().__init__()
        self.deleted: set[str] = set()

    async def delete(self, *keys: str) -> int:
        self.deleted.update(keys)
        return await super().delete(*keys)


@pytest.fixture
def backend() -> Recording:
    return Recording()


@pytest.fixture(autouse=True)
def cache(backend: Recording) -> Iterator[Cache]:
    with use_cache(Cache(backend, ttl=60)) as cache:
        yield cache


@pytest.fixture
async def session(committing_database: Database) -> AsyncGenerator[AsyncSession]:
    """A session that expires objects as it commits, as SQLAlchemy's own do."""
    engine = committing_database.writes.kw["bind"]
    async with async_sessionmaker(engine)() as session:
        await session.execute(text("CREATE TABLE book (id serial PRIMARY KEY, shelf text)"))
        await session.commit()
        yield session
        await session.rollback()
        await session.execute(text("DROP TABLE book"))
        await session.commit()


@pytest.fixture
async def book(session: AsyncSession, backend: Recording) -> Book:
    book = Book(shelf="a")
    session.add(book)
    await session.commit()
    assert backend.deleted == {"tag:books", "tag:book:1", "tag:shelf:a"}
    backend.deleted.clear()
    return book


async def test_a_change_names_the_old_and_the_new(
    session: AsyncSession, backend: Recording, book: Book
) -> None:
    book.shelf = "b"
    await session.flush()
    assert not backend.deleted

    await session.commit()

    assert backend.deleted == {"tag:books", "tag:book:1", "tag:shelf:a", "tag:shelf:b"}


async def test_a_deletion_needs_nothing_loaded(
    session: AsyncSession, backend: Recording, book: Book
) -> None:
    await session.delete(book)
    await session.commit()

    assert backend.deleted == {"tag:books", "tag:book:1", "tag:shelf:a"}
