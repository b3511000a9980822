"""Reads of single rows that must be fresh and cheap, such as one for each request."""

import asyncio
from collections.abc import Sequence
from contextvars import Context
from typing import Any, cast

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from src.db.connection import DatabaseUnavailableError

TIMEOUT_SECONDS = 5.0  # of a query that takes less than a millisecond
_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)
_INVALID_STATEMENT = "42"  # a class of SQLSTATEs, of which an undefined table is one

Rows = dict[str, asyncpg.Record]


class Lookups:
    """Finds rows by a key, without a cache: a result is not older than the call.

    Concurrent calls share queries: those that arrive during a query share the next one. The queries
    use the driver, because SQLAlchemy would need more time than PostgreSQL and the driver together.
    """

    def __init__(self, bind: AsyncEngine | AsyncConnection) -> None:
        self._bind = bind
        self._waiting: dict[str, dict[str, asyncio.Future[asyncpg.Record | None]]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def find(self, statement: str, key: str) -> asyncpg.Record | None:
        """Return the row of the key. Raises DatabaseUnavailableError.

        The statement is `SELECT key, … WHERE key = ANY($1)`.
        """
        waiting = self._waiting.setdefault(statement, {})
        if key not in waiting:
            waiting[key] = asyncio.get_running_loop().create_future()
        found = waiting[key]
        if statement not in self._tasks:
            work = self._run(statement)
            self._tasks[statement] = asyncio.create_task(work, context=Context())
        return await asyncio.shield(found)  # others may wait for it too

    async def _run(self, statement: str) -> None:
        try:
            while waiting := self._waiting.pop(statement, None):
                try:
                    rows = await self._query(statement, [*waiting])
                except Exception as error:  # noqa: BLE001 - the callers handle it
                    for future in waiting.values():
                        future.set_exception(error)
                        future.exception()  # the caller may have been cancelled
                else:
                    for key, future in waiting.items():
                        future.set_result(rows.get(key))
        finally:
            del self._tasks[statement]

    async def _query(self, statement: str, keys: Sequence[str]) -> Rows:
        if isinstance(self._bind, AsyncConnection):  # a test, in which sessions use it too
            shared = cast(Any, await self._bind.get_raw_connection())
            async with shared.dbapi_connection._execute_mutex:  # noqa: SLF001 - as in `_wait_until_idle`
                return _by_key(await shared.driver_connection.fetch(statement, keys))
        try:
            return await _fetch(self._bind, statement, keys)
        except DatabaseUnavailableError:
            # The connection was lost, as all others, if the server has restarted.
            return await _fetch(self._bind, statement, keys)


async def _fetch(engine: AsyncEngine, statement: str, keys: Sequence[str]) -> Rows:
    pooled = cast(Any, await engine.raw_connection())
    try:
        return _by_key(
            await pooled.driver_connection.fetch(statement, keys, timeout=TIMEOUT_SECONDS)
        )
    except _ERRORS as error:
        if str(getattr(error, "sqlstate", "")).startswith(_INVALID_STATEMENT):
            raise
        pooled.invalidate()
        raise DatabaseUnavailableError(f"A look-up failed: {error!r}") from error
    finally:
        pooled.close()


def _by_key(rows: Sequence[asyncpg.Record]) -> Rows:
    return {row[0]: row for row in rows}
