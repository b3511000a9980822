"""The migration environment, used by `alembic` and `python cli.py db`."""

import asyncio

import structlog
from alembic import context
from alembic.script.revision import MultipleHeads, ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from src.core.config import get_settings
from src.core.logging import configure_logging
from src.db import autogenerate
from src.db.base import Base
from src.db.session import DatabaseUnavailableError, create_engine

# If replicas start together, one gets this lock and migrates. The others wait, and then find nothing
# to migrate. The number is arbitrary; other uses of advisory locks must choose other numbers.
ADVISORY_LOCK = 7_246_193_048
LOCK_POLL_SECONDS = 0.1
log = structlog.get_logger(__name__)
MERGE = """
Two migrations follow the same one. Run `alembic merge heads -m merge`, or change `down_revision`."""
NEWER = """
The database has this migration, but alembic/versions does not. In development, switch to the branch
that has it, and run `alembic downgrade {head}` there, or delete the database: see
docs/troubleshooting.md. In production, deploy the newer code."""
ROLLED_BACK = """A migration failed, so all migrations of this command were rolled back, except in
`autocommit_block()`. Correct the one in the last line `Running upgrade`, and try again."""
HINT = "Start one with `python cli.py dev`, or set POSTGRES_HOST or DATABASE_URL to yours."


def run_migrations(connection: Connection) -> None:
    context.configure(connection=connection, **autogenerate.OPTIONS)
    try:
        with context.begin_transaction():
            context.run_migrations()
    except CommandError as error:
        raise CommandError(f"{error}{_hint(error.__cause__)}") from error
    except DBAPIError as error:
        error.add_note(ROLLED_BACK)
        raise


def _hint(cause: BaseException | None) -> str:
    """Return what to do after `git switch` or `git merge`, or an empty string."""
    if isinstance(cause, MultipleHeads):
        return MERGE
    applied = context.get_context().get_current_heads()
    if isinstance(cause, ResolutionError) and cause.argument in applied:
        return NEWER.format(head=" ".join(context.script.get_heads()))
    return ""


async def connect_and_run() -> None:
    settings = get_settings()
    url = context.config.attributes.get("url", settings.database_url)
    engine = create_engine(url.update_query_dict({"command_timeout": "0"}), poolclass=pool.NullPool)
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
    """Acquire the advisory lock until the transaction of this connection ends.

    The lock needs its own connection, since a migration may end its transaction in
    `autocommit_block()`. It needs a transaction, since a connection pooler may use another session
    after each transaction. It is polled, since a session that waits for a lock can deadlock with
    CREATE INDEX CONCURRENTLY. A transaction that does nothing does not stop that command.
    """
    await connection.execution_options(isolation_level="READ COMMITTED")  # no lasting snapshot
    attempt = text("SELECT pg_try_advisory_xact_lock(:key)")
    if not await connection.scalar(attempt, {"key": ADVISORY_LOCK}):
        log.info("waiting_for_migration_lock")
        await connection.rollback()
        while not await connection.scalar(attempt, {"key": ADVISORY_LOCK}):
            await connection.rollback()
            await asyncio.sleep(LOCK_POLL_SECONDS)
    for timeout in ("idle_in_transaction_session_timeout", "transaction_timeout"):
        await connection.execute(text(f"SET LOCAL {timeout} = 0"))


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
