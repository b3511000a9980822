"""Alembic's environment, for `alembic …` and `python cli.py db …`."""

import asyncio

import structlog
from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from src.core.config import get_settings
from src.core.logging import configure_logging
from src.db.base import Base
from src.db.models import load_models
from src.db.session import CONNECT_TIMEOUT_SECONDS, DatabaseUnavailableError, connect

# A number that no other user of the database locks. Of replicas that start together one gets this
# lock and migrates; the others wait, and then have nothing to do.
ADVISORY_LOCK = 7_246_193_048
LOCK_POLL_SECONDS = 0.1
log = structlog.get_logger(__name__)
HINT = "`python cli.py dev` runs one, or name yours in POSTGRES_HOST or DATABASE_URL."

load_models()


def run_migrations(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_server_default=True
    )
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
        async with engine.connect() as guard, engine.connect() as connection:
            await _lock(guard)
            await connection.run_sync(run_migrations)
    except DatabaseUnavailableError as error:
        # Alembic prints this as one sentence, and other errors with a traceback.
        hint = "" if settings.is_set("DATABASE_URL", "POSTGRES_HOST") else f"\n{HINT}"
        raise CommandError(f"{error}{hint}") from error
    finally:
        await engine.dispose()


async def _lock(guard: AsyncConnection) -> None:
    """Lock out other migrations until the connection `guard` is closed.

    The lock needs a separate connection, to PostgreSQL itself or to a pooler in session mode:
    `autocommit_block()` ends transactions. And it is polled: CREATE INDEX CONCURRENTLY would wait
    for a transaction that waits for the lock.
    """
    await guard.execution_options(isolation_level="AUTOCOMMIT")
    ask = text("SELECT pg_try_advisory_lock(:key)")
    if await guard.scalar(ask, {"key": ADVISORY_LOCK}):
        return
    log.info("waiting for another migration to end")
    while not await guard.scalar(ask, {"key": ADVISORY_LOCK}):  # noqa: ASYNC110 - others hold it
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
