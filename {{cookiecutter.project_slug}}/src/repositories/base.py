"""The base class of repositories. A subclass sets `model` and adds its queries."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from functools import cache
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import Select, bindparam, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm.interfaces import ORMOption

from src.db.base import UUIDMixin
from src.domain.errors import InvalidCursorError, NotFoundError

M = TypeVar("M", bound=UUIDMixin)


@cache
def _cursor_codec(order: str, kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(tuple[Literal[order], kind, UUID])  # type: ignore[valid-type]


class Repository(Generic[M]):
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

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

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

        The cursor is the column's name, its value and the ID. The column needs an index with the ID.
        """
        key = (column, self.model.id)
        order = f"{'-' if descending else ''}{column.key}"
        codec = _cursor_codec(order, column.type.python_type)
        if cursor is not None:
            try:
                _, *last = codec.validate_json(urlsafe_b64decode(cursor))
            except ValueError as error:
                raise InvalidCursorError from error
            after = tuple_(*map(literal, last, (each.type for each in key)))
            keys = tuple_(*key)
            statement = statement.where(keys < after if descending else keys > after)
        order_by = [each.desc() if descending else each.asc() for each in key]
        statement = statement.order_by(*order_by).offset(offset).limit(limit + 1)
        rows = (await self.session.scalars(statement)).all()
        if len(rows) <= limit:
            return rows, None
        last_key = (order, getattr(rows[limit - 1], column.key), rows[limit - 1].id)
        return rows[:limit], urlsafe_b64encode(codec.dump_json(last_key)).decode()

    async def add(self, entity: M) -> M:
        self.session.add(entity)
        await self.session.flush()
        return entity

    async def delete(self, entity: M) -> None:
        await self.session.delete(entity)
        await self.session.flush()
