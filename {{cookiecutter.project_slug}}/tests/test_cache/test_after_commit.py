"""What waits for a commit happens right after it, and only then."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from src.cache.engine.after_commit import after_commit, has_uncommitted_changes, watch_commits
from src.db.models.item import Item
from src.db.session import Database

PATIENCE_SECONDS = 60
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


class Calls(list[str]):
    async def note(self) -> None:
        self.append("called")


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def test_without_a_transaction_there_is_nothing_to_wait_for(calls: Calls) -> None:
    await after_commit(calls.note)
    assert len(calls) == 1


async def test_a_callback_waits_for_the_commit(database: Database, calls: Calls) -> None:
    async with database.transaction():
        await after_commit(calls.note)
        assert not calls
    assert len(calls) == 1


async def test_a_session_of_any_sessionmaker_will_do(
    committing_database: Database, calls: Calls
) -> None:
    engine = committing_database.writes.kw["bind"]
    async with async_sessionmaker(engine)() as session:
        await session.execute(text("SELECT 1"))
        await after_commit(calls.note)
        assert not calls
        await session.commit()
        assert len(calls) == 1
    assert len(calls) == 1


async def test_after_a_rollback_nothing_happens(database: Database, calls: Calls) -> None:
    with pytest.raises(ValueError, match="undo"):  # noqa: PT012 - the block is what raises
        async with database.transaction():
            await after_commit(calls.note)
            raise ValueError("undo")
    async with database.transaction():
        pass
    assert not calls


async def test_a_commit_that_fails_is_none(committing_database: Database, calls: Calls) -> None:
    async with committing_database.writes() as session:
        await session.execute(
            text("CREATE TEMPORARY TABLE one (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        )
        await session.execute(text("INSERT INTO one VALUES (1), (1)"))
        await after_commit(calls.note)
        with pytest.raises(Exception, match="unique"):
            await session.commit()
    assert not calls


async def test_savepoints_count_with_what_becomes_of_them(db: AsyncSession, calls: Calls) -> None:
    async def note_kept() -> None:
        calls.append("kept")

    async with db.begin_nested():
        await after_commit(note_kept)
        savepoint = await db.begin_nested()
        await after_commit(calls.note)
        await savepoint.rollback()
    assert not calls
    await db.commit()
    assert calls == ["kept"]


async def test_of_two_sessions_either_may_have_written(
    committing_database: Database, calls: Calls
) -> None:
    """Neither hides what the other has not committed yet."""
    async with committing_database.transaction() as session:
        session.add(Item(name="Lamp"))
        await session.flush()
        async with committing_database.transaction() as other:
            await other.execute(text("SELECT 1"))
            assert has_uncommitted_changes()
            await after_commit(calls.note, [session.sync_session])
        assert not calls
        assert has_uncommitted_changes()
    assert len(calls) == 1
    assert not has_uncommitted_changes()


async def test_a_reading_session_does_not_hide_the_transaction(
    committing_database: Database, calls: Calls
) -> None:
    async with committing_database.transaction(), committing_database.reads() as reads:
        await after_commit(calls.note, [reads.sync_session])
        assert not calls
    assert len(calls) == 1


async def test_what_begins_after_the_commit_is_not_waited_for(
    committing_database: Database, calls: Calls
) -> None:
    """A session that commits and then refreshes has begun anew, and may never commit again."""
    async with committing_database.writes() as session:
        with watch_commits() as watch:
            await session.execute(text("SELECT 1"))
            await session.commit()
            await session.execute(text("SELECT 1"))
        await after_commit(calls.note, [session.sync_session], watch)
        assert len(calls) == 1


async def test_a_task_that_outlives_the_transaction_is_not_in_it(
    committing_database: Database, calls: Calls
) -> None:
    ended = asyncio.Event()

    async def outlive() -> None:
        assert has_uncommitted_changes()
        await ended.wait()
        assert not has_uncommitted_changes()
        await after_commit(calls.note)

    async with committing_database.transaction() as session:
        await session.execute(text("CREATE TEMPORARY TABLE one (id int)"))
        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    ended.set()
    await task
    assert len(calls) == 1


async def test_a_callback_that_fails_neither_undoes_nor_stops_anything(
    database: Database, calls: Calls
) -> None:
    async def fail() -> None:
        raise ValueError("logged")

    async with database.transaction():
        await after_commit(fail)
        await after_commit(calls.note)
    assert len(calls) == 1


async def test_who_is_cancelled_while_committing_may_have_committed(
    committing_database: Database,
) -> None:
    called = asyncio.Event()

    async def note() -> None:
        called.set()

    async def change() -> None:
        async with committing_database.writes() as session:
            for statement in SLOW_COMMIT:
                await session.execute(text(statement))
            await after_commit(note)
            ready.set()
            await session.commit()

    ready = asyncio.Event()
    task = asyncio.create_task(change())
    await ready.wait()
    await asyncio.sleep(0.1)  # the commit would take far longer
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(PATIENCE_SECONDS):
        await called.wait()


async def test_who_is_cancelled_after_the_commit_has_committed(
    committing_database: Database,
) -> None:
    begun, gate, called = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def note() -> None:
        begun.set()
        await gate.wait()
        called.set()

    async def change() -> None:
        async with committing_database.writes() as session:
            await session.execute(text("SELECT 1"))
            await after_commit(note)
            await session.commit()

    task = asyncio.create_task(change())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await called.wait()
