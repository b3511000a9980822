"""The engine and the two kinds of session: one that writes, one that only reads."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import asyncpg
from sqlalchemy import URL, event
from sqlalchemy.engine import ExceptionContext
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

DEADLOCK = "40P01"
SERIALIZATION_FAILURE = "40001"
_CLIENT_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError)


class DatabaseUnavailableError(Exception):
    """PostgreSQL cannot be had just now, and may be in a moment; the message says why."""


class ReadOnlySessionError(Exception):
    """A session that only reads was asked to write."""


class ReadOnlySession(Session):
    def flush(self, objects: Any = None) -> None:
        if self.new or self.dirty or self.deleted:
            raise ReadOnlySessionError("This session only reads; take `DbSession` to write.")
        super().flush(objects)


class ReadSession(AsyncSession):
    """Each statement is its own transaction: no BEGIN and ROLLBACK, one round trip a read.

    It refuses to flush changed objects; an UPDATE that you write out it cannot tell from a SELECT.
    """

    sync_session_class = ReadOnlySession


@dataclass(frozen=True)
class Database:
    """The process's one way to PostgreSQL; opened and disposed by the lifespan."""

    writes: async_sessionmaker[AsyncSession]
    reads: async_sessionmaker[ReadSession]

    @classmethod
    def bound_to(cls, write: AsyncEngine | AsyncConnection, **options: Any) -> Self:
        """Make sessions on an engine, or all on one connection, as tests want them."""
        load_models()  # a relation may name a model that nothing else has imported
        read = write
        if isinstance(write, AsyncEngine):
            read = write.execution_options(isolation_level="AUTOCOMMIT")
        options = {"expire_on_commit": False, **options}
        return cls(
            writes=async_sessionmaker(write, **options),
            reads=async_sessionmaker(read, class_=ReadSession, **options),
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """Commit when the block ends, roll back when it raises; nothing else commits."""
        async with self.writes.begin() as session:
            yield session


async def connect(**options: Any) -> asyncpg.Connection:
    """Connect as asyncpg does, but tell a server that cannot be reached from any other error.

    Raises DatabaseUnavailableError.
    """
    try:
        return await asyncpg.connect(**options)
    except (OSError, UnicodeError, asyncpg.PostgresError, *_CLIENT_ERRORS) as error:
        where = f"{options.get('host', 'localhost')}:{options.get('port', 5432)}"
        cause = str(error) or "no answer in time"
        raise DatabaseUnavailableError(f"PostgreSQL at {where} is out of reach: {cause}") from error


def _name_passing_faults(context: ExceptionContext) -> DatabaseUnavailableError | None:
    """Tell faults that pass, and are worth another try, from those of our own making."""
    error = context.original_exception
    if not isinstance(error, Exception):
        return None  # a cancellation: SQLAlchemy takes it for a lost connection
    if isinstance(error, TimeoutError):
        return DatabaseUnavailableError(f"PostgreSQL took over {COMMAND_TIMEOUT_SECONDS} s.")
    if context.is_disconnect:
        return DatabaseUnavailableError("The connection to PostgreSQL was lost.")
    if getattr(error, "sqlstate", None) in {DEADLOCK, SERIALIZATION_FAILURE}:
        return DatabaseUnavailableError("The transaction lost against another one.")
    if isinstance(error.__cause__, asyncpg.InvalidCachedStatementError):
        return DatabaseUnavailableError("A migration has just changed the table.")
    return None


@asynccontextmanager
async def open_database(url: URL, *, pool_size: int) -> AsyncGenerator[Database]:
    """Connect lazily: a service may start before its database does.

    The pool keeps its connections. Opening them is what costs under load, so there is no overflow
    beyond `pool_size` that would be closed again at once; and a connection that the server closed
    is found out when it is used, rather than asked about before every use.
    """
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # else errors show values, and the log keeps them
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_recycle=1800,
        connect_args={
            "async_creator_fn": connect,
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": COMMAND_TIMEOUT_SECONDS,
        },
    )
    event.listen(engine.sync_engine, "handle_error", _name_passing_faults)
    try:
        yield Database.bound_to(engine)
    finally:
        await engine.dispose()
