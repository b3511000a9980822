"""How Alembic compares the models with the database, for `--autogenerate` and `alembic check`."""

from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

from alembic import command
from alembic.config import Config
from alembic.ddl.impl import ComparisonResult
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.operations.ops import CreateTableOp, DropTableOp, ExecuteSQLOp
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, Enum, String, inspect, text
from sqlalchemy.exc import DBAPIError

from src.core.config import ROOT
from src.db.base import Base

KEPT_TABLES = ROOT / "alembic/kept_tables.txt"  # written by `make relink`, or by hand
_PARSED = text(
    "SELECT pg_get_expr(conbin, conrelid) FROM pg_constraint"
    " WHERE contype = 'c' AND conrelid = 'pg_temp.parsed'::regclass"
)


class PostgresqlImplWithChecks(PostgresqlImpl):
    """Compares the conditions of CHECK constraints, such as the values of an enum."""

    __dialect__ = "postgresql"  # replaces Alembic's class

    def compare_check_constraint(
        self, metadata_constraint: CheckConstraint, reflected_constraint: CheckConstraint
    ) -> ComparisonResult:
        table = self.dialect.identifier_preparer.format_table(metadata_constraint.table)
        model = metadata_constraint.sqltext.compile(
            dialect=self.dialect, compile_kwargs={"literal_binds": True, "include_table": False}
        )
        connection = self.connection
        assert connection is not None  # noqa: S101 - for mypy: autogenerate has a connection
        try:
            # PostgreSQL changes a condition when it stores it, and again when a dump is restored.
            wanted = _parse(connection, table, _parse(connection, table, str(model)))
            stored = _parse(connection, table, str(reflected_constraint.sqltext))
        except DBAPIError:  # the condition has a column that the table does not have yet
            return ComparisonResult.Different("new column")
        return ComparisonResult.Equal() if wanted == stored else ComparisonResult.Different(wanted)


def _parse(connection: Connection, table: str, condition: str) -> str:
    """Return the condition as PostgreSQL stores it for this table."""
    savepoint = connection.begin_nested()
    try:
        check = f"CREATE TEMPORARY TABLE parsed (LIKE {table}, CHECK ({condition}))"
        connection.exec_driver_sql(check)
        return str(connection.scalar(_PARSED))
    finally:
        savepoint.rollback()


def _compare_type(*arguments: Any) -> bool | None:
    """Let a text column that is long enough for its enum be as it is."""
    stored, wanted = arguments[-2:]
    if not _is_text_enum(wanted) or isinstance(stored, Enum) or not isinstance(stored, String):
        return None
    return stored.length is not None and stored.length < max(map(len, wanted.enums))


def _is_text_enum(kind: object) -> TypeGuard[Enum]:
    return isinstance(kind, Enum) and not kind.native_enum


def _render_type(kind: str, element: object, _context: object) -> str | Literal[False]:
    """Write a text enum as the text column that it is. Its values are in the CHECK."""
    return "sa.String()" if kind == "type" and _is_text_enum(element) else False


def _include_name(name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
    """Compare only the schemas of models, not those of others in the same database."""
    if kind == "table":
        table = parents["schema_qualified_table_name"]
        return table in Base.metadata.tables or table not in kept_tables()
    return kind != "schema" or name in {None, *(t.schema for t in Base.metadata.tables.values())}


def kept_tables() -> set[str]:
    """Return the names of tables without a model that are not to be dropped."""
    return set(KEPT_TABLES.read_text("utf-8").split("\n")) if KEPT_TABLES.exists() else set()


def missing_tables(connection: Connection) -> list[str]:
    """Return the tables of models that the database does not have."""
    inspector = inspect(connection)
    tables = Base.metadata.tables.items()
    return sorted(name for name, t in tables if not inspector.has_table(t.name, schema=t.schema))


def _complete(context: MigrationContext, _revision: object, scripts: Any) -> None:
    """Create the schemas of new tables, which Alembic leaves out, and sort what it drops."""
    for script in scripts:
        _sort_drops(context, script)
        operations = script.upgrade_ops.ops
        tables = [each for each in operations if isinstance(each, CreateTableOp)]
        wanted = {each.schema for each in tables if each.schema}
        existing = inspect(context.connection).get_schema_names() if wanted else []
        for name in sorted(wanted.difference(existing)):
            operations.insert(0, ExecuteSQLOp(f'CREATE SCHEMA "{name}"'))
            script.downgrade_ops.ops.append(ExecuteSQLOp(f'DROP SCHEMA "{name}"'))


def _sort_drops(context: MigrationContext, script: Any) -> None:
    """Drop each table before those that its foreign keys refer to. Alembic's order is random."""
    drops = [each for each in script.upgrade_ops.ops if isinstance(each, DropTableOp)]
    if len(drops) < 2:  # noqa: PLR2004 - nothing to sort
        return
    schemas = {each.schema for each in drops}
    found = inspect(context.connection).sort_tables_on_foreign_key_dependency(schemas)
    order = [table for table, _ in found]
    drops.sort(key=lambda each: order.index((each.schema, each.table_name)), reverse=True)
    others = [each for each in script.upgrade_ops.ops if not isinstance(each, DropTableOp)]
    script.upgrade_ops.ops = [*others, *drops]
    script.upgrade_ops.reverse_into(script.downgrade_ops)


def write_migration(config: Config, message: str) -> bool:
    """Write a migration if the models differ from the database; return whether they do."""
    written = command.revision(
        config, message, autogenerate=True, process_revision_directives=_skip_empty
    )
    return written != []


def _skip_empty(_context: object, _revision: object, scripts: Any) -> None:
    if scripts[0].upgrade_ops.is_empty():
        scripts.clear()


OPTIONS: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "compare_server_default": True,
    "compare_type": _compare_type,
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
    "render_item": _render_type,
    "include_schemas": True,
    "include_name": _include_name,
    "process_revision_directives": _complete,
}
