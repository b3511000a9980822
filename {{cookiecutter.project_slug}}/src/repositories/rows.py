"""Queries that read rows for responses. Each is built once, because building it takes longer."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    bindparam,
    func,
    inspect,
    literal,
    select,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute

from src.db.base import UUIDMixin
from src.db.reader import Query
from src.domain.errors import InvalidCursorError

Model = type[UUIDMixin]
Schema = type[BaseModel]
Column = InstrumentedAttribute[Any]
Conditions = tuple[ColumnElement[bool], ...]

# Filters may have any name without an underscore in front.
_LIMIT, _OFFSET = (bindparam(name, type_=Integer) for name in ("_limit", "_offset"))


class Count(BaseModel):
    count: int


@dataclass(frozen=True)
class Order:
    """Sorts pages by a column and the ID. A cursor has the column's name, its value and the ID."""

    column: Column
    key: Column
    descending: bool

    def parse(self, cursor: str) -> tuple[Any, UUID]:
        """Return the value and the ID of the last row. Raises InvalidCursorError."""
        try:
            _, value, key = self._codec().validate_json(urlsafe_b64decode(cursor))
        except ValueError as error:
            raise InvalidCursorError from error
        return value, key

    def cursor(self, value: Any, key: UUID) -> str:
        return urlsafe_b64encode(self._codec().dump_json((self._name, value, key))).decode()

    def sort(self, statement: Any, after: Any = None) -> Any:
        """Sort the rows; with `after`, skip those until this value and ID."""
        both = (self.column, self.key)
        if after is not None:
            keys = tuple_(*both)
            statement = statement.where(keys < after if self.descending else keys > after)
        columns = (each.desc() if self.descending else each.asc() for each in both)
        return statement.order_by(*columns)

    @property
    def _name(self) -> str:
        return f"{'-' if self.descending else ''}{self.column.key}"

    def _codec(self) -> TypeAdapter[Any]:
        return _cursor_codec(self._name, self.column.type.python_type)


@cache
def _cursor_codec(name: str, kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(tuple[Literal[name], kind, UUID])  # type: ignore[valid-type]


@cache
def by_id(model: Model, schema: Schema) -> Query[Any]:
    return Query(schema, select(*_columns(model, schema)).where(model.id == bindparam("id")))


@lru_cache(maxsize=256)
def page(
    model: Model, schema: Schema, conditions: Conditions, order: Order, *, is_first: bool
) -> Query[Any]:
    """The rows also have the value and the ID for the cursor of the next page."""
    last = (order.column.label("_last_value"), order.key.label("_last_id"))
    statement: Select[Any] = select(*_columns(model, schema), *last).where(*conditions)
    after = tuple_(*(bindparam(each.name, type_=each.type) for each in last))
    statement = order.sort(statement, None if is_first else after).limit(_LIMIT).offset(_OFFSET)
    return Query(schema, statement, others=len(last))


@lru_cache(maxsize=256)
def count(model: Model, conditions: Conditions) -> Query[Count]:
    found = select(literal(1)).select_from(model).where(*conditions).limit(_LIMIT).subquery()
    return Query(Count, select(func.count().label("count")).select_from(found))


def _columns(model: Model, schema: Schema) -> list[ColumnElement[Any]]:
    """Return the columns that are fields of the schema. Raises TypeError if one is not a column."""
    columns = inspect(model).column_attrs
    selected = []
    for name, field in schema.model_fields.items():
        alias = field.validation_alias or name
        if isinstance(alias, str) and alias in columns:
            selected.append(getattr(model, alias).label(alias))
        elif field.is_required() or hasattr(model, name):
            raise TypeError(
                f"`{schema.__name__}.{name}` is not a column of `{model.__name__}`. Join it in a"
                " `Query`, or read entities with `get`."
            )
    return selected
