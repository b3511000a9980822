from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from src.db.models.item import Item
from src.db.models.item_report import ItemReport
from src.domain.item import ItemStatus

# When the statement looked; `now()` would be the beginning of the transaction.
_NOW = func.statement_timestamp(type_=DateTime(timezone=True))


class ItemReportRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def make(self, day: date) -> ItemReport:
        """Count, and keep that instead of what an earlier report on the day says.

        It is one statement, which reads the table of items once.
        """
        found = {"day": literal(day), **_counts(day), "made_at": _NOW}
        new = insert(ItemReport).from_select([*found], select(*found.values()))
        made = new.on_conflict_do_update(
            index_elements=[ItemReport.day],
            set_={name: new.excluded[name] for name in found if name != "day"},
        ).returning(ItemReport)
        fresh = {"populate_existing": True}
        return (await self.session.scalars(made, execution_options=fresh)).one()

    async def get(self, day: date) -> ItemReport | None:
        return await self.session.scalar(select(ItemReport).where(ItemReport.day == day))

    async def newest(self, *, limit: int) -> Sequence[ItemReport]:
        statement = select(ItemReport).order_by(ItemReport.day.desc()).limit(limit)
        return (await self.session.scalars(statement)).all()


def _counts(day: date) -> dict[str, ColumnElement[Any]]:
    totals: list[str | ColumnElement[int]] = []
    for status in ItemStatus:
        totals += [status.value, _number(Item.status == status)]
    was_changed = _is_on(day, Item.updated_at)
    return {
        "created": _number(_is_on(day, Item.created_at)),
        "changed": _number(was_changed & (Item.version > 1)),
        # An archived item never changes again.
        "archived": _number(was_changed & (Item.status == ItemStatus.ARCHIVED)),
        "totals": func.jsonb_build_object(*totals),
    }


def _number(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(Item.id).filter(condition)


def _is_on(day: date, moment: InstrumentedAttribute[datetime]) -> ColumnElement[bool]:
    begin = datetime.combine(day, time(), UTC)
    return (moment >= begin) & (moment < begin + timedelta(days=1))
