"""After-commit callbacks: they run after the commit, and before `commit()` returns."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column

from src.cache import Cache, MemoryBackend, invalidate, use_cache
from src.cache.engine.after_commit import has_uncommitted_changes
from src.db.base import Base
from src.db.session import Database

SLOW_COMMIT = (
    (
        "CREATE FUNCTION pg_temp.slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$"
    ),
    "CREATE TEMPORARY TABLE slow (id int)",
    (
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION pg_temp.slow()"
    ),
    "INSERT INTO slow VALUES (1)",
)


class RecordingBackend(MemoryBackend):
    """Records the deleted keys, without their tags. A deletion waits until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[str] = []
        self.started, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def delete(self, *keys: str) -> int:
        self.started.set()
        await self.gate.wait()
        self.deleted += [key for key in keys if key not in {f"tag:{each}" for each in keys}]
        return await super().delete(*keys)


@pytest.fixture
async def backend() -> AsyncGenerator[RecordingBackend]:
    backend = RecordingBackend()
    with use_cache(Cache(backend, ttl=60)):
        yield backend


async def test_invalidation_runs_after_the_commit(
    database: Database, backend: RecordingBackend
) -> None:
    """A transaction deletes its keys together, each once. Without one, deletion is immediate."""
    async with database.transaction():
        await invalidate("a")
        await invalidate("a", "b")
        await invalidate(tags=["c"])
        assert backend.deleted == []
    assert backend.deleted == ["a", "b", "tag:c"]
    await invalidate("key")
    assert backend.deleted[3:] == ["key"]


async def test_rollback_invalidates_nothing(database: Database, backend: RecordingBackend) -> None:
    with pytest.raises(ValueError, match="undo"):  # noqa: PT012 - the block must raise
        async with database.transaction():
            await invalidate("key")
            raise ValueError("undo")
    async with database.transaction():
        pass
    assert backend.deleted == []


async def test_savepoint_does_not_count_as_a_commit(
    db: AsyncSession, backend: RecordingBackend
) -> None:
    """An open savepoint does not prevent the invalidation after the commit."""
    async with db.begin_nested():
        await invalidate("a")
    await db.begin_nested()
    await invalidate("b")
    assert backend.deleted == []
    await db.commit()
    assert sorted(backend.deleted) == ["a", "b"]


async def test_uncommitted_changes_of_two_sessions_are_tracked(
    committing_database: Database, backend: RecordingBackend
) -> None:
    """One session does not hide uncommitted changes of the other."""
    async with committing_database.transaction() as session:
        await session.execute(text("CREATE TEMPORARY TABLE one (id int)"))
        async with committing_database.transaction() as other:
            await other.execute(text("SELECT 1"))
            assert has_uncommitted_changes()
            await invalidate("key", session=session)
        assert backend.deleted == []
        assert has_uncommitted_changes()
    assert backend.deleted == ["key"]
    assert not has_uncommitted_changes()


async def test_read_only_session_does_not_hide_an_open_transaction(
    committing_database: Database, backend: RecordingBackend
) -> None:
    async with committing_database.transaction(), committing_database.reads() as reads:
        await invalidate("key", session=reads)
        assert backend.deleted == []
    assert backend.deleted == ["key"]


async def test_asyncio_task_that_outlives_the_transaction_invalidates_immediately(
    committing_database: Database, backend: RecordingBackend
) -> None:
    ended = asyncio.Event()

    async def outlive() -> None:
        assert has_uncommitted_changes()
        await ended.wait()
        assert not has_uncommitted_changes()
        await invalidate("key")

    async with committing_database.transaction() as session:
        await session.execute(text("CREATE TEMPORARY TABLE one (id int)"))
        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    ended.set()
    await task
    assert backend.deleted == ["key"]


async def test_failed_invalidation_does_not_fail_the_commit(
    database: Database, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: str) -> int:
        raise ValueError("logged")

    monkeypatch.setattr(backend, "delete", fail)
    async with database.transaction():
        await invalidate("key")


async def test_cancelled_commit_still_invalidates(
    committing_database: Database, backend: RecordingBackend
) -> None:
    ready = asyncio.Event()

    async def change() -> None:
        async with committing_database.writes() as session:
            for statement in SLOW_COMMIT:
                await session.execute(text(statement))
            await invalidate("key")
            ready.set()
            await session.commit()

    task = asyncio.create_task(change())
    await ready.wait()
    await asyncio.sleep(0.1)  # the commit takes 30 s
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.deleted == ["key"]


@pytest.mark.parametrize("in_a_block", [True, False])
async def test_cancellation_after_the_commit_still_invalidates(
    committing_database: Database, backend: RecordingBackend, *, in_a_block: bool
) -> None:
    backend.gate.clear()

    async def change() -> None:
        if in_a_block:
            async with committing_database.transaction():
                await invalidate("key")
        else:
            async with committing_database.writes() as session:
                await session.execute(text("SELECT 1"))
                await invalidate("key")
                await session.commit()

    task = asyncio.create_task(change())
    await backend.started.wait()
    task.cancel()
    await asyncio.sleep(0)
    backend.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert backend.deleted == ["key"]


class SampleCopy(Base):
    metadata = MetaData()
    __tablename__ = "sample_copy"
    __cache_tags__ = ("books", "book:{id}", "shelf:{shelf}")
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf: Mapped[str]


async def test_model_change_invalidates_the_tags_of_the_old_and_the_new_state(
    committing_database: Database, backend: RecordingBackend
) -> None:
    """In a session with `expire_on_commit=True`, SQLAlchemy's default."""
    engine = committing_database.writes.kw["bind"]
    async with async_sessionmaker(engine)() as session:
        await session.execute(text("CREATE TABLE sample_copy (id serial PRIMARY KEY, shelf text)"))
        await session.commit()
        book = SampleCopy(shelf="a")
        session.add(book)
        await session.commit()
        assert {*backend.deleted} == {"tag:books", "tag:book:1", "tag:shelf:a"}

        backend.deleted.clear()
        book.shelf = "b"
        await session.flush()
        assert not backend.deleted
        await session.commit()
        assert {*backend.deleted} == {"tag:books", "tag:book:1", "tag:shelf:a", "tag:shelf:b"}

        backend.deleted.clear()
        await session.delete(book)  # its attributes have expired
        await session.commit()
        assert {*backend.deleted} == {"tag:books", "tag:book:1", "tag:shelf:b"}
        await session.execute(text("DROP TABLE sample_copy"))
        await session.commit()
