"""Create and drop databases. Both functions may raise DatabaseUnavailableError."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from src.db.session import create_engine

_EXISTS = text("SELECT true FROM pg_database WHERE datname = :name")


async def create_database(url: URL, *, template: str = "template1") -> bool:
    """Create the database of `url` as a copy of `template`, unless it exists.

    Returns whether it was created. The user of `url` needs the privilege CREATEDB.
    """
    async with _maintenance(url) as connection:
        if await connection.scalar(_EXISTS, {"name": url.database}):
            return False
        name, source = _quoted(connection, str(url.database)), _quoted(connection, template)
        await connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {source}"))
        return True


async def drop_database(url: URL) -> None:
    """Drop the database of `url` and close its connections."""
    async with _maintenance(url) as connection:
        name = _quoted(connection, str(url.database))
        await connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@asynccontextmanager
async def _maintenance(url: URL) -> AsyncGenerator[AsyncConnection]:
    url = url.set(database="postgres").update_query_dict({"command_timeout": "0"})
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


def _quoted(connection: AsyncConnection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)
