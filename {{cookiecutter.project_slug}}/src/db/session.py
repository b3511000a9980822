"""The engine and its two kinds of session: one writes, one only reads."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import asyncpg
from sqlalchemy import URL, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from src.db.models import load_models

CONNECT_TIMEOUT_SECONDS = 5
COMMAND_TIMEOUT_SECONDS = 30
POOL_TIMEOUT_SECONDS = 5

# SQLSTATEs
DEADLOCK = "40P01"
SERIALIZATION_FAILURE = "40001"
CHARACTER_NOT_IN_REPERTOIRE = "22021"
_CLIENT_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError)


class DatabaseUnavailableError(Exception):
    """PostgreSQL cannot serve this now; the same request may succeed later."""


class InvalidTextError(SQLAlchemyError):
    """A text holds a character that PostgreSQL cannot store: NUL."""


class ReadOnlySessionError(Exception):
    """A session that only reads was asked to write."""


class ReadOnlySession(Session):
    def flush(self, objects: Any = None) -> None:
        if self.new or self.dirty or self.deleted:
            raise ReadOnlySessionError("This session only reads; take `DbSession` to write.")
        super().flush(objects)


class ReadOnlyAsyncSession(AsyncSession):
    """Each statement is its own transaction: no BEGIN and ROLLBACK, one round trip a read.

    It refuses to flush changed objects, but executes an explicit UPDATE as any statement.
    """

    sync_session_class = ReadOnlySession


@dataclass(frozen=True)
class Database:
    """The process's sessions; the lifespan opens and disposes of them."""

    writes: async_sessionmaker[AsyncSession]
    reads: async_sessionmaker[ReadOnlyAsyncSession]

    @classmethod
    def bound_to(cls, write: AsyncEngine | AsyncConnection, **options: Any) -> Self:
        """Take sessions from an engine, or all from one connection, as tests do."""
        load_models()  # a relationship may name a model that nothing else has imported
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
        """Commit when the block ends, roll back when it raises; nothing else commits."""
        async with self.writes.begin() as session:
            yield session


async def connect(**options: Any) -> asyncpg.Connection:
    """Connect with asyncpg. Raises DatabaseUnavailableError if the server cannot be reached."""
    try:
        return await asyncpg.connect(**options)
    except (OSError, UnicodeError, asyncpg.PostgresError, *_CLIENT_ERRORS) as error:
        where = f"{options.get('host', 'localhost')}:{options.get('port', 5432)}"
        cause = str(error) or "no answer in time"
        raise DatabaseUnavailableError(f"PostgreSQL at {where} is unavailable: {cause}") from error


def _map_error(context: ExceptionContext) -> Exception | None:
    """Name the errors that are not bugs: those that pass, and text that cannot be stored."""
    error = context.original_exception
    if not isinstance(error, Exception):
        return None  # a cancellation: SQLAlchemy takes it for a lost connection
    if isinstance(error, TimeoutError):
        return DatabaseUnavailableError(f"PostgreSQL took over {COMMAND_TIMEOUT_SECONDS} s.")
    if context.is_disconnect:
        return DatabaseUnavailableError("The connection to PostgreSQL was lost.")
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate in {DEADLOCK, SERIALIZATION_FAILURE}:
        return DatabaseUnavailableError("The transaction lost against another one.")
    if isinstance(error.__cause__, asyncpg.InvalidCachedStatementError):
        return DatabaseUnavailableError("A migration has just changed the table.")
    is_text = sqlstate == CHARACTER_NOT_IN_REPERTOIRE
    return InvalidTextError("The text holds a NUL.") if is_text else None


def create_engine(url: URL, **options: Any) -> AsyncEngine:
    """An engine that raises DatabaseUnavailableError and InvalidTextError."""
    engine = create_async_engine(
        url,
        hide_parameters=True,  # else errors, and so the log, show values
        connect_args={
            "async_creator_fn": connect,
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": COMMAND_TIMEOUT_SECONDS,
        },
        **options,
    )
    event.listen(engine.sync_engine, "handle_error", _map_error)
    return engine


@asynccontextmanager
async def open_database(url: URL, *, pool_size: int) -> AsyncGenerator[Database]:
    """Connect lazily: the service may start before its database.

    The pool opens connections up to `pool_size` and keeps them: under load an overflow would open
    and close them all the time. A connection that the server has closed fails on its next use;
    testing each before use would cost a round trip.
    """
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_recycle=1800,
    )
    try:
        yield Database.bound_to(engine)
    finally:
        await engine.dispose()
