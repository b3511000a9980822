"""The migration environment, used by `alembic` and `python cli.py db`."""

import asyncio

import structlog
from alembic import context
from alembic.script.revision import MultipleHeads, ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, event, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from src.core import postgres_url
from src.core.config import get_settings
from src.core.logging import configure_logging
from src.db import autogenerate
from src.db.base import Base
from src.db.doctor import MERGE, MISSING, NEWER
from src.db.session import DatabaseUnavailableError, LockTimeoutError, create_engine

# If replicas start together, one gets this lock and migrates. The others wait, and then find nothing
# to migrate. The number is arbitrary; other uses of advisory locks must choose other numbers.
ADVISORY_LOCK = 7_246_193_048
LOCK_POLL_SECONDS = 0.1
# While a statement such as ALTER TABLE waits for a lock, it blocks all later queries of the table. So
# it waits only shortly, and these queries run in the pause before the next attempt.
TABLE_LOCK_SECONDS = 1
PAUSE_SECONDS = 4
ATTEMPTS = 60
# `lock_timeout` follows BEGIN, as behind a pooler: it must not apply in `autocommit_block()`, where
# CREATE INDEX CONCURRENTLY waits for long transactions without blocking others.
OPTIONS = {
    postgres_url.POOLER: "true",
    "command_timeout": "0",
    "lock_timeout": f"{TABLE_LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
}
log = structlog.get_logger(__name__)
ROLLED_BACK = """A migration failed, so all migrations of this command were rolled back, except in
`autocommit_block()`. Correct the one in the last line `Running upgrade`, and try again."""
HINT = "Start one with `python cli.py dev`, or set POSTGRES_HOST or DATABASE_URL to yours."


def run_migrations(connection: Connection) -> None:
    context.configure(connection=connection, **autogenerate.OPTIONS)
    try:
        with context.begin_transaction():
            context.run_migrations()
            _warn_of_missing_tables(connection)
    except CommandError as error:
        raise CommandError(f"{error}{_hint(error.__cause__)}") from error
    except DBAPIError as error:
        error.add_note(ROLLED_BACK)
        raise


def _warn_of_missing_tables(connection: Connection) -> None:
    """After `upgrade head`, warn if no migration has created the table of a model."""
    migrated = context.get_context()
    at_head = set(migrated.get_current_heads()) == set(context.script.get_heads())
    if not at_head or "destination_rev" not in migrated.opts:  # `check` or `revision`
        return
    if tables := autogenerate.missing_tables(connection):
        log.warning("tables_missing", tables=tables, hint=MISSING)


def _hint(cause: BaseException | None) -> str:
    """Return what to do after `git switch` or `git merge`, or an empty string."""
    if isinstance(cause, MultipleHeads):
        return f"\n{MERGE}"
    applied = context.get_context().get_current_heads()
    if isinstance(cause, ResolutionError) and cause.argument in applied:
        return "\n" + NEWER.format(head=" ".join(context.script.get_heads()))
    return ""


async def connect_and_run() -> None:
    settings = get_settings()
    url = context.config.attributes.get("url", settings.database_url)
    engine = create_engine(url.update_query_dict(OPTIONS), poolclass=pool.NullPool)
    try:
        async with engine.connect() as lock, engine.connect() as connection:
            await _acquire(lock)
            await _migrate(connection)
    except LockTimeoutError as error:
        raise CommandError(f"{error} See docs/migrations.md.\n{ROLLED_BACK}") from error
    except DatabaseUnavailableError as error:
        # Alembic prints a CommandError without a traceback.
        hint = "" if settings.is_set("DATABASE_URL", "POSTGRES_HOST") else f"\n{HINT}"
        raise CommandError(f"{error}{hint}") from error
    finally:
        await engine.dispose()


async def _migrate(connection: AsyncConnection) -> None:
    """Run the migrations, again after a pause if another transaction holds a lock."""
    commits: list[object] = []  # of `autocommit_block()`; the part before it must not run twice
    event.listen(connection.sync_connection, "commit", commits.append)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await connection.run_sync(run_migrations)
        except LockTimeoutError:
            if commits or attempt == ATTEMPTS:
                raise
        else:
            return
        log.warning("migration_waiting_for_lock", attempt=attempt, retry_seconds=PAUSE_SECONDS)
        await asyncio.sleep(PAUSE_SECONDS)


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
    # Until the next statement, the SELECT keeps its snapshot, for which CREATE INDEX CONCURRENTLY waits.
    await connection.execute(text("SET LOCAL lock_timeout = 0"))


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
