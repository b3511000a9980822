"""The engine, with sessions for transactions and sessions for reads only."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, cast

import asyncpg
from sqlalchemy import URL, Connection, DateTime, Dialect, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgDateTime
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import IllegalStateChangeError, InvalidRequestError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncResult,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection
from sqlalchemy.util import await_only

from src.db import connection
from src.db.connection import DatabaseUnavailableError
from src.db.lookups import Lookups
from src.db.reader import Reader, only_reads

__all__ = ["Database", "DatabaseUnavailableError", "create_engine", "open_database"]

POOL_TIMEOUT_SECONDS = 5
# For reads that may be slow: how many run at the same time in a process, and each one's limit.
EXPENSIVE_READS = 3
EXPENSIVE_READ_SECONDS = 3

# SQLSTATEs
DEADLOCK = "40P01"
SERIALIZATION_FAILURE = "40001"
QUERY_CANCELED = "57014"
LOCK_NOT_AVAILABLE = "55P03"
IN_FAILED_TRANSACTION = "25P02"
DATA_EXCEPTION = "22000"
NUMERIC_VALUE_OUT_OF_RANGE = "22003"
CHARACTER_NOT_IN_REPERTOIRE = "22021"
_FAILED_KEY = "transaction_has_failed"  # key in `Connection.info`
_CONCURRENT_USE = "isce"  # code of SQLAlchemy's error
DUPLICATE_PREPARED_STATEMENT = "42P05"
INVALID_STATEMENT_NAME = "26000"
_CONFLICT = "The transaction conflicted with another one."
_POOLER = "Prepared statements got lost. Behind a connection pooler, set DATABASE_POOLER=true."
_TEMPORARY = {
    SERIALIZATION_FAILURE: _CONFLICT,
    QUERY_CANCELED: "PostgreSQL canceled a statement, for example after statement_timeout.",
    DUPLICATE_PREPARED_STATEMENT: _POOLER,
    INVALID_STATEMENT_NAME: _POOLER,
    "53": "PostgreSQL has no more connections, memory or disk space.",  # a class of SQLSTATEs
    "58": "PostgreSQL has an I/O error.",
}
# The connection is broken, was idle in a transaction for too long, or leads to a server that stops,
# starts, or is read-only, such as a standby after a failover.
_LOST = re.compile(r"08...|25006|25P0[34]|57P0[1-5]")
_TIMEOUT_ROUTINE = "ProcessInterrupts"  # of PostgreSQL; NOWAIT has others


class ConnectionLostError(DatabaseUnavailableError):
    pass


class LockTimeoutError(DatabaseUnavailableError):
    """Another transaction held a lock for longer than `lock_timeout`, or it was a deadlock."""


class NaiveDatetimeError(ValueError):
    """A datetime without UTC offset. asyncpg would interpret it in the machine's zone."""

    sqlstate = "22007"  # invalid_datetime_format


class ReadOnlySessionError(Exception):
    """A read-only session has changes to write."""


class SessionUseError(Exception):
    """A session is used in a way that would lose changes or leak a connection."""


_COMMITS_BY_ITSELF = (
    "This transaction commits by itself, when the endpoint returns or the block ends. Remove "
    "`commit()` and `begin()`. Use `flush()` to send changes now, and `begin_nested()` for a part "
    "that may fail."
)
_HAS_ENDED = (
    "This session is closed. The session of an endpoint closes before the response is sent, and "
    "you need not close it. In `BackgroundTasks`, declare `database: AppDatabase` and use "
    "`database.transaction()`; in a stream, use `StreamSession`."
)
_SHARED = (
    "Several coroutines use one session at the same time, as in `asyncio.gather()`. Await them one "
    "after the other, or open a session for each."
)
_FAILED = (
    "A statement of this transaction failed, so PostgreSQL can only roll it back. Run a statement "
    "whose error you catch in `async with db.begin_nested():`."
)
ROWS_PER_FETCH = 500


class OwnedSession(Session):
    """A session that refuses use after `close()`, and a commit while its owner lends it."""

    is_lent = False
    has_ended = False

    def begin(self, nested: bool = False) -> SessionTransaction:
        if self.is_lent and not nested:
            raise SessionUseError(_COMMITS_BY_ITSELF)
        return super().begin(nested)

    def close(self) -> None:
        self.has_ended = True  # first, since closing may wait for a statement
        super().close()

    def _autobegin_t(self, begin: bool = False) -> SessionTransaction:
        """SQLAlchemy calls this before any use of a session that has no transaction."""
        if self.has_ended:
            raise SessionUseError(_HAS_ENDED)
        return super()._autobegin_t(begin)


@event.listens_for(OwnedSession, "before_commit")
def _refuse_commit(session: Session) -> None:
    if cast(OwnedSession, session).is_lent and not session.in_nested_transaction():
        raise SessionUseError(_COMMITS_BY_ITSELF)


@contextmanager
def lend(session: AsyncSession, *, lent: bool = True) -> Generator[None]:
    """Refuse commits inside the block. With `lent=False`, the owner of the session may commit again."""
    owned = cast(OwnedSession, session.sync_session)
    owned.is_lent, before = lent, owned.is_lent
    try:
        yield
    finally:
        owned.is_lent = before


class ReadOnlySession(OwnedSession):
    def flush(self, objects: Any = None) -> None:
        if not self._is_clean():  # cheaper than `new`, `dirty` and `deleted`
            raise ReadOnlySessionError("This session is read-only. Use `DbSession` to write.")
        super().flush(objects)

    def _execute_internal(self, statement: Any, *args: Any, **options: Any) -> Any:
        """Repeat a SELECT once if its connection turns out to be lost."""
        try:
            return super()._execute_internal(statement, *args, **options)
        except ConnectionLostError:
            connection = self.connection()
            lost = connection.get_transaction()
            if lost is None or not _is_autocommit(connection) or not only_reads(statement):
                raise
            lost.close()
        return super()._execute_internal(statement, *args, **options)


class ReadOnlyAsyncSession(AsyncSession):
    """A session in autocommit mode: each read is one round trip, without BEGIN and ROLLBACK.

    It refuses to flush changed objects. It does not stop an explicit UPDATE statement.
    """

    sync_session_class = ReadOnlySession

    async def stream(self, *_: Any, **__: Any) -> AsyncResult[Any]:
        # A cursor needs a transaction.
        raise SessionUseError("This session cannot stream. Use `StreamSession`.")


class StreamingAsyncSession(ReadOnlyAsyncSession):
    """A read-only session in a transaction. `stream` and `stream_scalars` use a cursor."""

    async def stream(
        self, statement: Any, *args: Any, execution_options: Any = None, **kwargs: Any
    ) -> AsyncResult[Any]:
        # Without yield_per, the ORM reads all rows at once, despite the cursor.
        options = {"yield_per": ROWS_PER_FETCH, **(execution_options or {})}
        result: AsyncResult[Any] = await AsyncSession.stream(
            self, statement, *args, execution_options=options, **kwargs
        )
        return result


@dataclass(frozen=True)
class Database:
    """Creates sessions, and reads rows. Each process has one `Database`, which the lifespan opens and closes."""

    writes: async_sessionmaker[AsyncSession]
    reads: async_sessionmaker[ReadOnlyAsyncSession]
    streams: async_sessionmaker[StreamingAsyncSession]
    probes: async_sessionmaker[ReadOnlyAsyncSession]
    expensive: async_sessionmaker[ReadOnlyAsyncSession]
    reader: Reader
    lookups: Lookups

    @classmethod
    def bound_to(
        cls, write: AsyncEngine | AsyncConnection, *reads: AsyncEngine, **options: Any
    ) -> Self:
        """Create sessions on engines, or, for tests, all on one connection."""
        binds: list[AsyncEngine | AsyncConnection] = [write] * 4
        if isinstance(write, AsyncEngine):
            level = {"isolation_level": "AUTOCOMMIT"}
            binds = [each.execution_options(**level) for each in (write, *reads)]
        options = {"expire_on_commit": False, **options}
        *reading, lookup = binds
        read, probe, expensive = (
            async_sessionmaker(bind, class_=ReadOnlyAsyncSession, **options) for bind in reading
        )
        return cls(
            writes=async_sessionmaker(write, sync_session_class=OwnedSession, **options),
            reads=read,
            streams=async_sessionmaker(write, class_=StreamingAsyncSession, **options),
            probes=probe,
            expensive=expensive,
            reader=Reader(read),
            lookups=Lookups(lookup),
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """Open a session that commits at the end of the block, and rolls back on an exception."""
        session = self.writes()
        session.sync_session.begin()  # so that callbacks registered first wait for the commit
        succeeded = False
        try:
            with lend(session):
                yield session
            succeeded = True
        except InvalidRequestError as error:
            explain(error)
            raise
        finally:
            await _complete(_end(session, commit=succeeded))


def explain(error: InvalidRequestError) -> None:
    """Say what to do if several coroutines use one session."""
    if error.code == _CONCURRENT_USE and not hasattr(error, "__notes__"):
        error.add_note(_SHARED)


async def close(session: AsyncSession) -> None:
    """Close the session. Wait for a statement that another coroutine still runs."""
    while True:
        try:
            return await session.close()
        except IllegalStateChangeError:
            await asyncio.sleep(0.01)


async def _end(session: AsyncSession, *, commit: bool) -> None:
    try:
        if commit:
            await session.commit()
    finally:
        await close(session)


async def _complete(work: Coroutine[Any, Any, None]) -> None:
    """Complete the work even if the caller is cancelled: a commit may have callbacks."""
    task = asyncio.create_task(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _map_error(context: ExceptionContext) -> Exception | None:
    """Return our exception, or None to keep the original one."""
    error = context.original_exception
    if isinstance(error, DatabaseUnavailableError | PoolTimeoutError):
        # A lost connection could not be replaced. SQLAlchemy would wrap the error.
        return DatabaseUnavailableError(str(error))
    # Not a cancellation, which SQLAlchemy treats as a disconnect.
    return _map_driver_error(context, error) if isinstance(error, Exception) else None


def _map_driver_error(context: ExceptionContext, error: Exception) -> Exception | None:
    if isinstance(error, TimeoutError):
        return DatabaseUnavailableError("A statement took longer than command_timeout.")
    sqlstate = getattr(error, "sqlstate", None) or ""
    if _LOST.fullmatch(sqlstate):
        context.is_disconnect = True  # SQLAlchemy then replaces all connections of the pool
    if context.is_disconnect:
        return ConnectionLostError("The connection to PostgreSQL was lost, or is of no more use.")
    routine = getattr(error.__cause__, "server_source_function", None)
    if sqlstate == DEADLOCK or (sqlstate, routine) == (LOCK_NOT_AVAILABLE, _TIMEOUT_ROUTINE):
        return LockTimeoutError("Another transaction held a lock for too long.")
    message = _TEMPORARY.get(sqlstate) or _TEMPORARY.get(sqlstate[:2])
    if isinstance(error.__cause__, asyncpg.InvalidCachedStatementError):
        message = "A migration has just changed the table. Try again."
    if message:
        return DatabaseUnavailableError(message)
    return SessionUseError(_FAILED) if sqlstate == IN_FAILED_TRANSACTION else None


def sqlstate_of(error: StatementError) -> str | None:
    """Return the SQLSTATE of the error, also if the driver refused a value of the right type."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    refused = error.orig and error.orig.__cause__ and error.orig.__cause__.__cause__
    if sqlstate == DATA_EXCEPTION and isinstance(refused, OverflowError):
        return NUMERIC_VALUE_OUT_OF_RANGE
    if sqlstate == DATA_EXCEPTION and isinstance(refused, UnicodeError):
        return CHARACTER_NOT_IN_REPERTOIRE
    return sqlstate


class _AwareDateTime(AsyncpgDateTime):
    def bind_processor(self, _dialect: Dialect) -> Callable[[Any], Any] | None:
        return _require_offset if self.timezone else _refuse_offset


def _require_offset(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        raise NaiveDatetimeError(
            "A datetime has no UTC offset: use `datetime.now(UTC)`, and `AwareDatetime` in schemas."
        )
    return value


def _refuse_offset(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        raise TypeError(
            "The datetime has a UTC offset, but the column has no time zone: declare it as"
            " `Mapped[datetime]` or `DateTime(timezone=True)`."
        )
    return value


def _note_failure(context: ExceptionContext) -> None:
    """Remember that PostgreSQL will turn the COMMIT of this transaction into a ROLLBACK."""
    connection = context.connection
    error = context.original_exception.__cause__
    is_from_server = getattr(error, "severity", None) is not None  # the driver refuses values too
    if connection is None or connection.invalidated or context.is_disconnect:
        return  # `info` would connect
    if is_from_server:
        connection.info[_FAILED_KEY] = not _is_autocommit(connection)


def _is_autocommit(connection: Connection) -> bool:
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


def _forget_failure(connection: Connection, *_: object) -> None:
    connection.info.pop(_FAILED_KEY, None)


def _wait_until_idle(connection: Connection) -> None:
    """Wait for a statement of another coroutine. Otherwise the COMMIT or ROLLBACK would fail."""
    if connection.invalidated:
        return
    adapted: Any = connection.connection.dbapi_connection
    mutex = adapted._execute_mutex  # noqa: SLF001 - held while asyncpg runs a statement
    if mutex.locked():
        await_only(mutex.acquire())
        mutex.release()


def _check_failure(connection: Connection) -> None:
    if connection.info.get(_FAILED_KEY):
        raise SessionUseError(_FAILED)


def create_engine(url: URL, **options: Any) -> AsyncEngine:
    """Create an engine that raises DatabaseUnavailableError and refuses naive datetimes."""
    location, arguments = connection.split(url)
    engine = create_async_engine(
        location,
        hide_parameters=True,  # error messages must not contain values
        connect_args=arguments,
        **options,
    )
    event.listen(engine.sync_engine, "handle_error", _note_failure)
    event.listen(engine.sync_engine, "checkin", connection.start_idling)
    event.listen(engine.sync_engine, "checkout", connection.check_idle)
    event.listen(engine.sync_engine, "handle_error", _map_error)
    event.listen(engine.sync_engine, "begin", _forget_failure)
    event.listen(engine.sync_engine, "rollback_savepoint", _forget_failure)
    event.listen(engine.sync_engine, "commit", _wait_until_idle)
    event.listen(engine.sync_engine, "commit", _check_failure)
    event.listen(engine.sync_engine, "rollback", _wait_until_idle)
    engine.dialect.colspecs = {**engine.dialect.colspecs, DateTime: _AwareDateTime}
    return engine


class _OneLoopPool(AsyncAdaptedQueuePool):
    """Rejects other event loops: a connection that another loop has used no longer works."""

    _sqla_logger_namespace = "sqlalchemy.pool"  # otherwise INFO shows the pool's debug messages

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loop = asyncio.get_running_loop()

    def connect(self) -> PoolProxiedConnection:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "The database belongs to another event loop. Use `await` instead of asyncio.run()."
                # % if cookiecutter.__queue
                " In an actor that is not `async def`, call run() of src.tasks.context."
                # % endif
            )
        return super().connect()


@asynccontextmanager
async def open_database(url: URL, *, pool_size: int) -> AsyncGenerator[Database]:
    """Open a connection pool. It connects on first use, so the database may start later.

    There is no overflow, since that opens and closes connections all the time under load. Only a
    connection that was idle is tested before its use, since that costs a round trip. The connection
    that was used last is used first, so that few are idle under load. Readiness has a separate
    connection: an instance whose pool is in use is busy, and without it others become busier.
    Expensive reads have separate ones too, so that other requests need not wait for them, and so has
    the look-up of credentials, which a request may need while it already has a connection.
    """
    engine, probe, lookup = (_create_pool(url, size) for size in (pool_size, 1, 1))
    limited = url.update_query_dict({"command_timeout": str(EXPENSIVE_READ_SECONDS)})
    expensive = _create_pool(limited, EXPENSIVE_READS)
    database = Database.bound_to(engine, probe, expensive, lookup)
    try:
        yield database
    finally:
        database.lookups.release()
        for each in (engine, probe, expensive, lookup):
            await each.dispose()


def _create_pool(url: URL, size: int) -> AsyncEngine:
    return create_engine(
        url,
        poolclass=_OneLoopPool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_recycle=1800,
        pool_use_lifo=True,
    )
