"""Checks of the database and its migrations, for `python cli.py doctor`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from src.core.config import ROOT, Settings
from src.db import autogenerate
from src.db.connection import DatabaseUnavailableError, split
from src.db.session import create_engine
from src.doctor import TO_DO, CheckError, CheckSkippedError

OLDEST_VERSION = 18
MISSING = (
    "After an update of the template, run `make relink`. If it prints no migration, generate one: "
    "`make migration`."
)
MERGE = """\
Two migrations follow the same one. After an update of the template, run `make relink`. Otherwise run
`alembic merge heads -m merge`, or change `down_revision`."""
NEWER = """\
The database has this migration, but alembic/versions does not. In development, switch to the branch
that has it, and run `alembic downgrade {head}` there, or delete the database: see
docs/troubleshooting.md. In production, deploy the newer code."""
TO_DO_AFTER = {
    asyncpg.InvalidCatalogNameError: "Create it with `python cli.py db init`.",
    asyncpg.InvalidAuthorizationSpecificationError: (
        "Correct DATABASE_URL, or POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_SSLMODE."
    ),
}


async def check_database(settings: Settings) -> str:
    try:
        async with _connect(settings) as connection:
            version = str(await connection.scalar(text("SHOW server_version")))
    except DatabaseUnavailableError as error:
        to_do = (do for kind, do in TO_DO_AFTER.items() if isinstance(error.__cause__, kind))
        raise CheckError(error, next(to_do, TO_DO)) from error
    if int(version.partition(".")[0]) < OLDEST_VERSION:
        raise CheckError(f"PostgreSQL {version} is too old", f"Use {OLDEST_VERSION} or newer.")
    location, _ = split(settings.database_url)
    return f"PostgreSQL {version.partition(' ')[0]} at {location.render_as_string()}"


async def check_migrations(settings: Settings) -> str:
    try:
        async with _connect(settings) as connection:
            applied, missing = await connection.run_sync(_inspect)
    except DatabaseUnavailableError:
        raise CheckSkippedError("It needs the database.") from None
    script = ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))
    heads = tuple(script.get_heads())
    if len(heads) > 1:
        raise CheckError(f"There are two heads: {', '.join(heads)}", MERGE)
    known = {each.revision for each in script.walk_revisions()}
    if unknown := sorted({*applied} - known):
        raise CheckError(f"Unknown migration {unknown[0]}", NEWER.format(head=heads[0]))
    pending = len(list(script.iterate_revisions(heads, applied or "base")))
    if pending:
        raise CheckError(f"Not applied: {pending}", "Run `python cli.py db migrate`.")
    if missing:
        raise CheckError(f"All are applied, but tables are missing: {', '.join(missing)}", MISSING)
    return f"All {len(known)} are applied."


def _inspect(connection: Connection) -> tuple[tuple[str, ...], list[str]]:
    """Return the applied heads, and the tables of models that do not exist."""
    applied = MigrationContext.configure(connection).get_current_heads()
    return tuple(applied), autogenerate.missing_tables(connection)


@asynccontextmanager
async def _connect(settings: Settings) -> AsyncGenerator[AsyncConnection]:
    engine = create_engine(settings.database_url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


CHECKS = {"database": check_database, "migrations": check_migrations}
