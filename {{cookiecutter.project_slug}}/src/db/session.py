"""The engine, with sessions for transactions and sessions for reads only."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import asyncpg
from sqlalchemy import URL, DateTime, Dialect, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgDateTime
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection

CONNECT_TIMEOUT_SECONDS = 5
COMMAND_TIMEOUT_SECONDS = 30
POOL_TIMEOUT_SECONDS = 5

# SQLSTATEs
DEADLOCK = "40P01"
SERIALIZATION_FAILURE = "40001"
DATA_EXCEPTION = "22000"
NUMERIC_VALUE_OUT_OF_RANGE = "22003"
CHARACTER_NOT_IN_REPERTOIRE = "22021"
_CLIENT_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError)


class DatabaseUnavailableError(Exception):
    """PostgreSQL is unavailable, or failed in a way that a retry may fix."""


class NaiveDatetimeError(ValueError):
    """A datetime without UTC offset. asyncpg would take it for the time of this machine's zone."""

    sqlstate = "22007"  # invalid_datetime_format

    def __init__(self) -> None:
        super().__init__(
            "A datetime has no UTC offset: use `datetime.now(UTC)`, and `AwareDatetime` in schemas."
        )


class ReadOnlySessionError(Exception):
    """A read-only session has changes to write."""


class ReadOnlySession(Session):
    def flush(self, objects: Any = None) -> None:
        if self.new or self.dirty or self.deleted:
            raise ReadOnlySessionError("This session is read-only. Use `DbSession` to write.")
        super().flush(objects)


class ReadOnlyAsyncSession(AsyncSession):
    """A session in autocommit mode: each read is one round trip, without BEGIN and ROLLBACK.

    It refuses to flush changed objects. It does not stop an explicit UPDATE statement.
    """

    sync_session_class = ReadOnlySession


@dataclass(frozen=True)
class Database:
    """Creates sessions. Each process has one `Database`, which the lifespan opens and closes."""

    writes: async_sessionmaker[AsyncSession]
    reads: async_sessionmaker[ReadOnlyAsyncSession]

    @classmethod
    def bound_to(cls, write: AsyncEngine | AsyncConnection, **options: Any) -> Self:
        """Create sessions on an engine, or, for tests, all on one connection."""
        read = write
        if isinstance(write, AsyncEngine):
            read = write.execution_options(isolation_level="AUTOCOMMIT")
        options = {"expire_on_commit": False, **options}
        return cls(
            writes=async_sessionmaker(write, **options),
            reads=async_sessionmaker(read, class_=ReadOnlyAsyncSession, **options),
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """Open a session that commits at the end of the block, and rolls back on an exception."""
        async with self.writes.begin() as session:
            yield session


async def connect(**options: Any) -> asyncpg.Connection:
    """Connect with asyncpg. Raises DatabaseUnavailableError if the server cannot be reached."""
    try:
        return await asyncpg.connect(**options)
    except (OSError, UnicodeError, asyncpg.PostgresError, *_CLIENT_ERRORS) as error:
        where = f"{options.get('host', 'localhost')}:{options.get('port', 5432)}"
        cause = str(error) or "no response in time"
        raise DatabaseUnavailableError(f"PostgreSQL at {where} is unavailable: {cause}") from error


def _map_error(context: ExceptionContext) -> Exception | None:
    """Return our exception for a temporary error, or None for other errors."""
    error = context.original_exception
    if not isinstance(error, Exception):
        return None  # a cancellation, which SQLAlchemy takes for a disconnect
    if isinstance(error, TimeoutError):
        return DatabaseUnavailableError(f"A statement took more than {COMMAND_TIMEOUT_SECONDS} s.")
    if context.is_disconnect:
        return DatabaseUnavailableError("The connection to PostgreSQL was lost.")
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate in {DEADLOCK, SERIALIZATION_FAILURE}:
        return DatabaseUnavailableError("The transaction conflicted with another one.")
    if isinstance(error.__cause__, asyncpg.InvalidCachedStatementError):
        return DatabaseUnavailableError("A migration has just changed the table. Try again.")
    return None


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
        raise NaiveDatetimeError
    return value


def _refuse_offset(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        raise TypeError(
            "The datetime has a UTC offset, but the column has no time zone: declare it as"
            " `Mapped[datetime]` or `DateTime(timezone=True)`."
        )
    return value


def create_engine(url: URL, **options: Any) -> AsyncEngine:
    """Create an engine that raises DatabaseUnavailableError and refuses naive datetimes."""
    engine = create_async_engine(
        url,
        hide_parameters=True,  # error messages must not contain values
        connect_args={
            "async_creator_fn": connect,
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": COMMAND_TIMEOUT_SECONDS,
        },
        **options,
    )
    event.listen(engine.sync_engine, "handle_error", _map_error)
    engine.dialect.colspecs = {**engine.dialect.colspecs, DateTime: _AwareDateTime}
    return engine


class _OneLoopPool(AsyncAdaptedQueuePool):
    """Rejects other event loops: a connection that one of them has used breaks for all."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loop = asyncio.get_running_loop()

    def connect(self) -> PoolProxiedConnection:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "The database belongs to another event loop: await instead of asyncio.run()."
                # % if cookiecutter.__queue
                " In an actor that is not `async def`, call run() of src.tasks.context."
                # % endif
            )
        return super().connect()


@asynccontextmanager
async def open_database(url: URL, *, pool_size: int) -> AsyncGenerator[Database]:
    """Open a connection pool. It connects on first use, so the database may start later.

    There is no overflow, since that opens and closes connections all the time under load. There is
    no test before each use, since that costs a round trip: a connection that the server has closed
    fails once.
    """
    engine = create_engine(
        url,
        poolclass=_OneLoopPool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_recycle=1800,
    )
    try:
        yield Database.bound_to(engine)
    finally:
        await engine.dispose()
