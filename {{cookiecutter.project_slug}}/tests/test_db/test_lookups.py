"""Look-ups by key, which concurrent calls share, and which are never older than the call."""

import asyncio
from contextlib import AsyncExitStack
from time import monotonic

import pytest
from asyncpg import UndefinedTableError
from sqlalchemy import URL, text

from src.db.session import Database, DatabaseUnavailableError, open_database
from tests.pgbouncer import needs_pgbouncer

SECONDS = 0.3
# The result is as old as the start of the statement.
SLOW = """
SELECT note.text, note.version FROM test.note, pg_sleep(0.3) WHERE note.text = ANY($1)
"""
FAST = "SELECT note.text, note.version FROM test.note WHERE note.text = ANY($1)"


async def set_version(database: Database, name: str, version: int) -> None:
    async with database.transaction() as db:
        await db.execute(text("DELETE FROM test.note WHERE text = :name"), {"name": name})
        await db.execute(
            text("INSERT INTO test.note (text, version) VALUES (:name, :version)"),
            {"name": name, "version": version},
        )


async def version(database: Database, name: str, statement: str = FAST) -> int | None:
    row = await database.lookups.find(statement, name)
    return row and row["version"]


async def test_concurrent_calls_share_queries(committing_database: Database) -> None:
    names = [f"note {number}" for number in range(20)]
    for name in names[:10]:
        await set_version(committing_database, name, 1)
    started = monotonic()

    found = await asyncio.gather(*(version(committing_database, name, SLOW) for name in names))

    assert found == [1] * 10 + [None] * 10
    assert monotonic() - started < 20 * SECONDS / 2  # two queries instead of twenty


async def test_a_call_sees_what_was_committed_before_it(committing_database: Database) -> None:
    """Also if a query for the same key has started before the commit."""
    database = committing_database
    await set_version(database, "note", 1)
    early = [asyncio.create_task(version(database, "note", SLOW)) for _ in range(2)]
    await asyncio.sleep(SECONDS / 3)
    await set_version(database, "note", 2)

    assert await version(database, "note", SLOW) == 2
    assert await early[0] == 1


async def test_a_cancelled_call_does_not_affect_others(committing_database: Database) -> None:
    await set_version(committing_database, "note", 1)
    calls = [asyncio.create_task(version(committing_database, "note", SLOW)) for _ in range(4)]
    await asyncio.sleep(SECONDS / 3)
    for call in (calls[0], calls[2]):  # one that runs the query, and one that waits
        call.cancel()

    assert [await calls[1], await calls[3]] == [1, 1]
    assert await version(committing_database, "note") == 1


async def test_a_lost_connection_is_replaced(committing_database: Database) -> None:
    await set_version(committing_database, "note", 1)
    assert await version(committing_database, "note") == 1
    others = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%note.text = ANY%'"
    async with committing_database.transaction() as db:
        ended = text(f"SELECT pg_terminate_backend(pid, 5000) {others} AND pid <> pg_backend_pid()")
        assert (await db.scalars(ended)).all() == [True]

    assert await version(committing_database, "note") == 1


async def test_errors_reach_each_caller(committing_url: URL) -> None:
    async with open_database(committing_url, pool_size=1) as database:
        calls = [version(database, "a", "SELECT 1 FROM absent WHERE $1 <> '{}'") for _ in range(3)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [UndefinedTableError] * 3
    unreachable = committing_url.set(query={}, host="127.0.0.1", port=1)
    async with open_database(unreachable, pool_size=1) as database:
        with pytest.raises(DatabaseUnavailableError):
            await version(database, "a")


@needs_pgbouncer
async def test_calls_work_behind_a_pooler(pooler_url: URL, committing_database: Database) -> None:
    await set_version(committing_database, "note", 1)
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(open_database(pooler_url, pool_size=1)) for _ in "abc"
        ]
        calls = [version(database, "note") for database in pools for _ in range(20)]

        assert set(await asyncio.gather(*calls)) == {1}
