"""The base class of repositories. A subclass sets `model` and adds its queries."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, bindparam, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm.interfaces import ORMOption

from src.db.base import UUIDMixin
from src.db.reader import Query, Reader, Rows, rows_in_session
from src.db.session import SessionUseError
from src.domain.errors import NotFoundError
from src.repositories import rows
from src.repositories.rows import Order

M = TypeVar("M", bound=UUIDMixin)
S = TypeVar("S", bound=BaseModel)
Filters = Mapping[str, ColumnElement[bool]]  # conditions with a `bindparam`, which has their name

_ALL: Mapping[str, Any] = {}


class Repository(Generic[M]):
    """The queries of a model.

    `read` returns rows for responses. `get` returns entities, to change them or to load their
    relationships; it takes longer, and needs a session.
    """

    model: type[M]
    # Built once per class: building a statement costs more than executing it.
    _by_id: Select[M]
    _by_id_locked: Select[M]

    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "model"):
            return  # a base class of other repositories
        if not issubclass(cls.model, UUIDMixin):
            raise TypeError(
                f"{cls.__name__} needs a model with UUIDMixin, not {cls.model.__name__}."
            )
        cls._by_id = select(cls.model).where(cls.model.id == bindparam("id"))
        # Without populate_existing, the session may return values that it read before the lock.
        cls._by_id_locked = cls._by_id.with_for_update().execution_options(populate_existing=True)

    def __init__(self, db: AsyncSession | Reader) -> None:
        self.db = db

    @property
    def session(self) -> AsyncSession:
        if isinstance(self.db, Reader):
            raise SessionUseError(
                "Entities need a session: take `ReadSession` or `DbSession` instead of `DbReader`."
            )
        return self.db

    @property
    def _model(self) -> Any:
        return self.model  # mypy believes that a class of a TypeVar has no hash

    async def read(self, schema: type[S], key: UUID) -> S | None:
        """Read the columns of the row that are fields of the schema."""
        found: list[S] = await self.fetch(rows.by_id(self._model, schema), id=key)
        return found[0] if found else None

    async def read_or_raise(self, schema: type[S], key: UUID, error: type[NotFoundError]) -> S:
        found = await self.read(schema, key)
        if found is None:
            raise error(id=key)
        return found

    async def read_page(
        self,
        schema: type[S],
        wanted: Mapping[str, Any] = _ALL,
        filters: Filters = _ALL,
        *,
        by: InstrumentedAttribute[Any] | None = None,
        descending: bool = True,
        limit: int,
        cursor: str | None = None,
        offset: int = 0,
    ) -> tuple[list[S], str | None]:
        """Return a page, and the cursor of the next page, if there is one.

        `wanted` has values for the filters of the same name; None means all rows. The rows are
        sorted by the column `by`, which is never null and needs an index with the ID, or by the ID:
        UUIDv7 keys sort by creation time. A page by cursor has the same cost at any depth; `offset`
        reads all rows that it skips. Raises InvalidCursorError.
        """
        order = Order(by or self.model.id, self.model.id, descending)
        values = _given(wanted)
        conditions = tuple(filters[name] for name in values)
        if cursor is not None:
            values["_last_value"], values["_last_id"] = order.parse(cursor)
        query = rows.page(self._model, schema, conditions, order, is_first=cursor is None)
        # Fetch one more row to find out if there is a next page.
        found = await self._rows(query, {**values, "_limit": limit + 1, "_offset": offset})
        next_cursor = order.cursor(*found[limit - 1][-2:]) if len(found) > limit else None
        return query.parse(found[:limit]), next_cursor

    async def count_rows(
        self,
        wanted: Mapping[str, Any] = _ALL,
        filters: Filters = _ALL,
        *,
        limit: int | None = None,
    ) -> int:
        """Count the rows, at most `limit`: counting all of a large table takes seconds."""
        values = _given(wanted)
        query = rows.count(self._model, tuple(filters[name] for name in values))
        return query.parse(await self._rows(query, {**values, "_limit": limit}))[0].count

    async def fetch(self, query: Query[S], **values: Any) -> list[S]:
        """Run a query of your own."""
        return query.parse(await self._rows(query, values))

    async def _rows(self, query: Query[Any], values: Mapping[str, Any]) -> Rows:
        if isinstance(self.db, Reader):
            return await self.db.rows(query, values)
        return await rows_in_session(self.db, query, values)

    async def get(self, key: UUID, *options: ORMOption) -> M | None:
        """Read the row. Pass options to load its relationships: `selectinload(Book.author)`."""
        statement = self._by_id.options(*options) if options else self._by_id
        return await self.session.scalar(statement, {"id": key})

    async def get_for_update(self, key: UUID, *options: ORMOption) -> M | None:
        """Read the row and lock it until the transaction ends."""
        statement = self._by_id_locked.options(*options) if options else self._by_id_locked
        return await self.session.scalar(statement, {"id": key})

    async def get_or_raise(
        self,
        key: UUID,
        error: type[NotFoundError],
        *options: ORMOption,
        for_update: bool = False,
    ) -> M:
        get = self.get_for_update if for_update else self.get
        found = await get(key, *options)
        if found is None:
            raise error(id=key)
        return found

    async def paginate(
        self, statement: Select[M], *, limit: int, cursor: UUID | None = None, offset: int = 0
    ) -> tuple[Sequence[M], UUID | None]:
        """Return a page, newest rows first, and the cursor of the next page, if there is one.

        The cursor is the ID of the last row: UUIDv7 keys sort by creation time. A page by cursor
        has the same cost at any depth; `offset` reads all rows that it skips.
        """
        # Fetch one more row to find out if there is a next page.
        statement = statement.order_by(self.model.id.desc()).offset(offset).limit(limit + 1)
        if cursor is not None:
            statement = statement.where(self.model.id < cursor)
        rows = (await self.session.scalars(statement)).all()
        page = rows[:limit]
        return page, page[-1].id if len(rows) > limit else None

    async def paginate_by(
        self,
        column: InstrumentedAttribute[Any],
        statement: Select[M],
        *,
        descending: bool = False,
        limit: int,
        cursor: str | None = None,
        offset: int = 0,
    ) -> tuple[Sequence[M], str | None]:
        """Like `paginate`, but sorted by a column that is never null. Raises InvalidCursorError.

        The column needs an index with the ID.
        """
        order = Order(column, self.model.id, descending)
        after = None
        if cursor is not None:
            types = (column.type, self.model.id.type)
            after = tuple_(*map(literal, order.parse(cursor), types))
        statement = order.sort(statement, after).offset(offset).limit(limit + 1)
        found = (await self.session.scalars(statement)).all()
        if len(found) <= limit:
            return found, None
        last = found[limit - 1]
        return found[:limit], order.cursor(getattr(last, column.key), last.id)

    async def add(self, entity: M) -> M:
        self.session.add(entity)
        await self.session.flush()
        return entity

    async def delete(self, entity: M) -> None:
        await self.session.delete(entity)
        await self.session.flush()


def _given(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if value is not None}
