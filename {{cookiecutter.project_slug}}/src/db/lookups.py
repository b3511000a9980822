"""Reads of single rows that must be fresh and cheap, such as one for each request."""

import asyncio
from collections.abc import Sequence
from contextvars import Context
from typing import Any

import asyncpg
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from src.db.connection import DatabaseUnavailableError

TIMEOUT_SECONDS = 5.0  # of a query that takes less than a millisecond
HOLD_SECONDS = 0.3  # taking a connection from the pool costs more than the query
_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)
_SLOW = (TimeoutError, PoolTimeoutError)
_INVALID_STATEMENT = "42"  # a class of SQLSTATEs, of which an undefined table is one

Rows = dict[str, asyncpg.Record]


class _LostError(DatabaseUnavailableError):
    pass


class Lookups:
    """Finds rows by a key. A result is not older than the call.

    Concurrent calls share queries: those that arrive during a query share the next one. The queries
    use the driver, because SQLAlchemy would need more time than PostgreSQL and the driver together.
    For the same reason, it keeps its connection for HOLD_SECONDS.
    """

    def __init__(self, bind: AsyncEngine | AsyncConnection) -> None:
        self._bind = bind
        self._is_busy = False
        self._waiting: dict[str, dict[str, asyncio.Future[asyncpg.Record | None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._held: Any = None  # a connection of the pool

    async def find(self, statement: str, key: str) -> asyncpg.Record | None:
        """Return the row of the key. Raises DatabaseUnavailableError.

        The statement is `SELECT key, … WHERE key = ANY($1)`.
        """
        if self._is_busy:
            waiting = self._waiting.setdefault(statement, {})
            if key not in waiting:
                waiting[key] = asyncio.get_running_loop().create_future()
            return await asyncio.shield(waiting[key])  # others may wait for it too
        self._is_busy = True
        try:  # without a task, which would take almost as long as the query
            return (await self._query(statement, [key])).get(key)
        finally:
            self._is_busy = bool(self._waiting)
            if self._is_busy:
                self._task = asyncio.create_task(self._run(), context=Context())

    async def _run(self) -> None:
        """Send a query for the calls that wait, until no call waits."""
        while self._waiting:
            statement = next(iter(self._waiting))
            waiting = self._waiting.pop(statement)
            try:
                rows = await self._query(statement, [*waiting])
            except Exception as error:  # noqa: BLE001 - the callers handle it
                for future in waiting.values():
                    future.set_exception(error)
                    future.exception()  # the caller may have been cancelled
            else:
                for key, future in waiting.items():
                    future.set_result(rows.get(key))
        self._is_busy = False

    async def _query(self, statement: str, keys: Sequence[str]) -> Rows:
        if isinstance(self._bind, AsyncConnection):  # a test, in which sessions use it too
            shared: Any = await self._bind.get_raw_connection()
            async with shared.dbapi_connection._execute_mutex:  # noqa: SLF001 - as in `_wait_until_idle`
                return _by_key(await shared.driver_connection.fetch(statement, keys))
        try:
            return await self._fetch(self._bind, statement, keys)
        except _LostError:  # as each connection of the pool, if the server has restarted
            return await self._fetch(self._bind, statement, keys)

    async def _fetch(self, engine: AsyncEngine, statement: str, keys: Sequence[str]) -> Rows:
        try:
            if self._held is None:
                self._held = await engine.raw_connection()
                asyncio.get_running_loop().call_later(HOLD_SECONDS, self._release_if_idle)
            driver = self._held.driver_connection
            return _by_key(await driver.fetch(statement, keys, timeout=TIMEOUT_SECONDS))
        except (*_ERRORS, *_SLOW, asyncio.CancelledError) as error:
            if str(getattr(error, "sqlstate", "")).startswith(_INVALID_STATEMENT):
                raise
            if self._held is not None:
                self._held.invalidate()  # of a cancelled call, the query may still run
                self._held = None
            if isinstance(error, asyncio.CancelledError):
                raise
            kind = DatabaseUnavailableError if isinstance(error, _SLOW) else _LostError
            raise kind(f"A look-up failed: {error!r}") from error

    def _release_if_idle(self) -> None:
        if self._is_busy:
            asyncio.get_running_loop().call_later(HOLD_SECONDS, self._release_if_idle)
        else:
            self.release()

    def release(self) -> None:
        """Return the connection to the pool, which tests it before the next use."""
        if self._held is not None:
            self._held.close()
            self._held = None


def _by_key(rows: Sequence[asyncpg.Record]) -> Rows:
    return {row[0]: row for row in rows}
