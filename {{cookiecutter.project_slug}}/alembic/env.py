"""The migration environment, used by `alembic` and `python cli.py db`."""

import asyncio

import structlog
from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from src.core.config import get_settings
from src.core.logging import configure_logging
from src.db import autogenerate
from src.db.base import Base
from src.db.session import CONNECT_TIMEOUT_SECONDS, DatabaseUnavailableError, connect

# If replicas start together, one gets this lock and migrates. The others wait, and then find nothing
# to migrate. The number is arbitrary; other uses of advisory locks must choose other numbers.
ADVISORY_LOCK = 7_246_193_048
LOCK_POLL_SECONDS = 0.1
log = structlog.get_logger(__name__)
HINT = "Start one with `python cli.py dev`, or set POSTGRES_HOST or DATABASE_URL to yours."


def run_migrations(connection: Connection) -> None:
    context.configure(connection=connection, **autogenerate.OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    settings = get_settings()
    url = context.config.attributes.get("url", settings.database_url)
    engine = create_async_engine(
        url,
        poolclass=pool.NullPool,
        connect_args={"async_creator_fn": connect, "timeout": CONNECT_TIMEOUT_SECONDS},
    )
    try:
        async with engine.connect() as lock, engine.connect() as connection:
            await _acquire(lock)
            await connection.run_sync(run_migrations)
    except DatabaseUnavailableError as error:
        # Alembic prints a CommandError without a traceback.
        hint = "" if settings.is_set("DATABASE_URL", "POSTGRES_HOST") else f"\n{HINT}"
        raise CommandError(f"{error}{hint}") from error
    finally:
        await engine.dispose()


async def _acquire(connection: AsyncConnection) -> None:
    """Acquire the advisory lock. PostgreSQL releases it when the connection is closed.

    The lock needs its own connection, since a migration may end its transaction in
    `autocommit_block()`. A connection pooler must be in session mode. The lock is polled, since a
    session that waits in pg_advisory_lock() can deadlock with CREATE INDEX CONCURRENTLY.
    """
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    attempt = text("SELECT pg_try_advisory_lock(:key)")
    if await connection.scalar(attempt, {"key": ADVISORY_LOCK}):
        return
    log.info("waiting_for_migration_lock")
    while not await connection.scalar(attempt, {"key": ADVISORY_LOCK}):  # noqa: ASYNC110 - nothing to await
        await asyncio.sleep(LOCK_POLL_SECONDS)


def run_offline() -> None:
    """Print the SQL instead of running it: `alembic upgrade head --sql`."""
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    configure_logging(get_settings())
    asyncio.run(connect_and_run())
