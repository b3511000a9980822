"""Reads rows for responses, without a session, a transaction or entities."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import asyncpg
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import Dialect, Float, Select, SelectBase, UpdateBase
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.sql.visitors import iterate
from sqlalchemy.types import TypeEngine
from sqlalchemy.util import greenlet_spawn

from src.db.connection import DatabaseUnavailableError

S = TypeVar("S", bound=BaseModel)
Rows = Sequence[Sequence[Any]]

_TOO_SLOW = (TimeoutError, asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
_FAILED = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# Object IDs of PostgreSQL's types, which SQLAlchemy needs to convert numbers.
_FLOAT8, _NUMERIC = 701, 1700


class Query(Generic[S]):
    """A SELECT of columns, whose rows become instances of a schema.

    Declare it once, with a `bindparam` for each value: it is compiled at its first use, which takes
    longer than the query. Its columns have the names of the schema's fields; the schema does not
    have the last `others` columns.
    """

    def __init__(
        self, schema: type[S], statement: Select[*tuple[Any, ...]], *, others: int = 0
    ) -> None:
        if not only_reads(statement) or any(
            each.get("entity") is each["expr"] for each in statement.column_descriptions
        ):
            raise TypeError("A Query selects columns, not entities, and changes nothing.")
        self.statement = statement
        columns = statement.selected_columns.keys()
        self._names = columns[: len(columns) - others]
        fields = {field.validation_alias or name for name, field in schema.model_fields.items()}
        if unknown := [name for name in self._names if name not in fields]:
            raise TypeError(
                f"`{schema.__name__}` has no field `{unknown[0]}`. Name the column:"
                " `.label(…)` with the name of a field."
            )
        self._schemas = TypeAdapter(list[schema])  # type: ignore[valid-type]
        self._compiled: _Compiled | None = None

    def parse(self, rows: Rows) -> list[S]:
        names = self._names
        return self._schemas.validate_python([dict(zip(names, row, strict=False)) for row in rows])

    def compiled(self, dialect: Dialect) -> "_Compiled":
        if self._compiled is None:
            self._compiled = _Compiled(self.statement, dialect)
        return self._compiled


def only_reads(statement: Any) -> bool:
    is_select = isinstance(statement, SelectBase)
    return is_select and not any(isinstance(part, UpdateBase) for part in iterate(statement))


class Reader:
    """Runs a `Query`. It needs no closing, because it has a connection only during a query.

    The driver runs the query: SQLAlchemy needs more time than PostgreSQL and the driver together.
    So events of SQLAlchemy do not happen, such as `do_orm_execute`. A query that fails runs again
    in a session, which replaces lost connections and raises readable errors.
    """

    def __init__(self, sessions: async_sessionmaker[Any]) -> None:
        self._sessions = sessions

    async def rows(self, query: Query[Any], values: Mapping[str, Any]) -> Rows:
        """Raises DatabaseUnavailableError."""
        bind = self._sessions.kw["bind"]
        if isinstance(bind, AsyncEngine):  # else a test, in which sessions share a connection
            compiled = query.compiled(bind.dialect)
            arguments = compiled.arguments(values)
            if arguments is not None:
                records = await _fetch(bind, compiled.sql, arguments)
                if records is not None:
                    return compiled.decode(records)
        async with self._sessions() as session:
            return await rows_in_session(session, query, values)


async def rows_in_session(
    session: AsyncSession, query: Query[Any], values: Mapping[str, Any]
) -> Rows:
    return (await session.execute(query.statement, dict(values))).all()


async def _fetch(engine: AsyncEngine, sql: str, arguments: Sequence[Any]) -> Rows | None:
    """Return the rows, or None if the query failed, but not because it takes too long.

    Raises DatabaseUnavailableError.
    """
    connection = await engine.raw_connection()
    driver: Any = connection.driver_connection
    try:
        rows: Rows = await driver.fetch(sql, *arguments)
    except _TOO_SLOW as error:
        raise DatabaseUnavailableError("A query was canceled, or took too long.") from error
    except _FAILED:
        return None
    except asyncio.CancelledError:
        await greenlet_spawn(connection.invalidate)  # cancels the query in PostgreSQL, too
        raise
    finally:
        connection.close()
    return rows


class _Compiled:
    """The SQL of a statement, and how SQLAlchemy's types convert its values and its rows."""

    def __init__(self, statement: Select[*tuple[Any, ...]], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = compiled.string
        # The values of `in_()` change the SQL.
        self._is_fixed = not (compiled.post_compile_params or compiled.literal_execute_params)
        binds = [compiled.binds[name] for name in compiled.positiontup or ()]
        self._parameters = [(bind.key, _encoder(bind.type, dialect)) for bind in binds]
        self._defaults = {bind.key: bind.effective_value for bind in binds if not bind.required}
        decoders = [_decoder(column.type, dialect) for column in statement.selected_columns]
        self._decoders = [(index, decode) for index, decode in enumerate(decoders) if decode]

    def arguments(self, values: Mapping[str, Any]) -> list[Any] | None:
        """Return the values in the order of the SQL; None if they need a session."""
        if not self._is_fixed:
            return None
        values = {**self._defaults, **values}
        try:
            return [
                encode(values[name]) if encode else values[name]
                for name, encode in self._parameters
            ]
        except Exception:  # noqa: BLE001 - a type may raise any; in the session, it is readable
            return None

    def decode(self, records: Rows) -> Rows:
        if not self._decoders:
            return records
        rows = [list(record) for record in records]
        for index, decode in self._decoders:
            for row in rows:
                row[index] = decode(row[index])
        return rows


def _encoder(kind: TypeEngine[Any], dialect: Dialect) -> Any:
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _decoder(kind: TypeEngine[Any], dialect: Dialect) -> Any:
    number = _FLOAT8 if isinstance(kind, Float) else _NUMERIC
    return kind.dialect_impl(dialect).result_processor(dialect, number)
