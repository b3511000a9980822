"""Writes a migration for changed models: `make migration m="Add price"`.

The models are compared with a new database that has all migrations, and that is deleted again. So it
does not matter whether `make dev` runs, and what your own database contains.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, make_url

from dev.postgres import embedded_postgres
from dev.server import ServerError
from src.core.config import ROOT, get_settings, override_setting
from src.db.autogenerate import write_migration
from src.db.session import DatabaseUnavailableError
from src.db.setup import create_database, drop_database

USAGE = 'Describe the change, for example: make migration m="Add price"'
UNCHANGED = "The models match the migrations: no migration is needed."


@contextmanager
def new_database() -> Iterator[URL]:
    """Create a database on the server of the settings, or, without one, on an embedded server."""
    settings = get_settings()
    if settings.is_set("DATABASE_URL", "POSTGRES_HOST"):
        url = settings.database_url.set(database=f"migration_{uuid4().hex[:12]}")
        asyncio.run(create_database(url))
        try:
            yield url
        finally:
            asyncio.run(drop_database(url))
    else:
        with embedded_postgres() as server:
            yield make_url(server)


def main(message: str) -> None:
    if not message.strip():
        sys.exit(USAGE)
    try:
        with new_database() as url:
            alembic = Config(ROOT / "alembic.ini", attributes={"url": url})
            override_setting("LOG_LEVEL", "ERROR")  # not the migrations, nor the missing tables
            command.upgrade(alembic, "head")
            override_setting("LOG_LEVEL", "INFO")
            if not write_migration(alembic, message):
                sys.stdout.write(f"{UNCHANGED}\n")
    except (CommandError, DatabaseUnavailableError, ServerError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
