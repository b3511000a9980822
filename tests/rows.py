"""Rows in the tables of a database."""

from collections.abc import Mapping

from sqlalchemy import Column, Connection, MetaData, Table, func, make_url, select, text
from sqlalchemy.ext.asyncio import create_async_engine

# Values of columns that have a CHECK; for others, the type decides, and 1 is the default.
WORDS = {
    "item.status": "draft",
    "lamp.shade": "green",
    "one_time_token.purpose": "verify-email",
    "scheduler_run.outcome": "lost",
    "task.status": "queued",
    "users.role": "member",
}
BY_TYPE = {
    "ARRAY": [],
    "Date": func.now(),
    "DateTime": func.now(),
    "LargeBinary": b"x",
    "JSON": {},
    "Text": "x",
    "Uuid": func.uuidv7(),
}


async def create_database(server: str, name: str) -> str:
    """Create an empty database; return its URL."""
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(f'CREATE DATABASE "{name}"'))
    await engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


async def fill(url: str, **words: str) -> dict[str, int]:
    """Insert a row into each empty table; return the number of rows of each table."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        counts = await connection.run_sync(_fill, WORDS | words)
    await engine.dispose()
    return counts


def _fill(connection: Connection, words: Mapping[str, str]) -> dict[str, int]:
    tables = MetaData()
    tables.reflect(connection)
    return {table.name: _count(connection, table, words) for table in tables.sorted_tables}


def _count(connection: Connection, table: Table, words: Mapping[str, str]) -> int:
    count = connection.scalar(select(func.count()).select_from(table))
    if count:
        return count
    given = [each for each in table.c if not (each.identity or each.computed)]
    values = {each.name: _value(each, words) for each in given if not each.server_default}
    connection.execute(table.insert().values(values))
    return 1


def _value(column: "Column[object]", words: Mapping[str, str]) -> object:
    for key in column.foreign_keys:
        return select(key.column).limit(1).scalar_subquery()
    kind = type(column.type.as_generic()).__name__
    return words.get(str(column), BY_TYPE.get(kind, 1))
