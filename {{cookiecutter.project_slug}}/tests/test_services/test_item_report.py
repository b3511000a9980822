import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.item import Item
from src.db.session import Database
from src.domain.item import ItemStatus
from src.domain.item_report import ItemReportNotFoundError, ItemReportTooEarlyError
from src.services.item_report import ItemReportService

DRAFT, ACTIVE, ARCHIVED = ItemStatus
DAY = date(2026, 1, 15)
FIRST = datetime(2026, 1, 15, tzinfo=UTC)
LAST = datetime(2026, 1, 15, 23, 59, 59, 999_999, tzinfo=UTC)
BEFORE = FIRST - timedelta(microseconds=1)
AFTER = LAST + timedelta(microseconds=1)


async def add(
    db: AsyncSession,
    created: datetime,
    changed: datetime | None = None,
    status: ItemStatus = DRAFT,
) -> None:
    """Add an item that was made then, and has changed since, if it has."""
    item = Item(name="Lamp", created_at=created, updated_at=created)
    db.add(item)
    await db.flush()
    if changed is not None:
        item.name, item.status, item.updated_at = "Light", status, changed
        await db.flush()


async def counts(db: AsyncSession) -> tuple[int, int, int]:
    report = await ItemReportService.make(db, DAY)
    return report.created, report.changed, report.archived


async def test_a_day_without_items(db: AsyncSession) -> None:
    report = await ItemReportService.make(db, DAY)

    assert (report.day, report.created, report.changed, report.archived) == (DAY, 0, 0, 0)
    assert report.totals == {"draft": 0, "active": 0, "archived": 0}
    assert report.made_at.tzinfo is not None


@pytest.mark.parametrize(
    ("created", "changed", "status", "expected"),
    [
        (BEFORE, None, DRAFT, (0, 0, 0)),
        (FIRST, None, DRAFT, (1, 0, 0)),
        (LAST, None, DRAFT, (1, 0, 0)),
        (AFTER, None, DRAFT, (0, 0, 0)),
        (FIRST, LAST, ACTIVE, (1, 1, 0)),
        (FIRST, LAST, ARCHIVED, (1, 1, 1)),
        (BEFORE, FIRST, ARCHIVED, (0, 1, 1)),
        (BEFORE, LAST, DRAFT, (0, 1, 0)),
        (FIRST, AFTER, ARCHIVED, (1, 0, 0)),
    ],
)
async def test_what_counts_is_what_was_done_on_the_day(
    db: AsyncSession,
    created: datetime,
    changed: datetime | None,
    status: ItemStatus,
    expected: tuple[int, int, int],
) -> None:
    """From its first moment in UTC to its last; a new item has not changed."""
    await add(db, created, changed, status)

    assert await counts(db) == expected


async def test_totals_are_of_all_items(db: AsyncSession) -> None:
    for status, number in {DRAFT: 1, ACTIVE: 2, ARCHIVED: 3}.items():
        for _ in range(number):
            await add(db, BEFORE, AFTER, status)

    report = await ItemReportService.make(db, DAY)

    assert report.totals == {"draft": 1, "active": 2, "archived": 3}


async def test_a_second_report_replaces_the_first(db: AsyncSession) -> None:
    """Also where the session knows the first."""
    first = await ItemReportService.make(db, DAY)
    made_at = first.made_at
    await add(db, FIRST, LAST, ARCHIVED)

    second = await ItemReportService.make(db, DAY)

    assert (second.created, second.changed, second.archived) == (1, 1, 1)
    assert second.totals["archived"] == 1
    assert second.made_at > made_at
    assert await ItemReportService.newest(db, limit=2) == [second]


async def test_many_at_once_make_one(own_database: Database) -> None:
    async def make() -> None:
        async with own_database.transaction() as db:
            await ItemReportService.make(db, DAY)

    await asyncio.gather(*(make() for _ in range(8)))

    async with own_database.reads() as reads:
        assert len(await ItemReportService.newest(reads, limit=2)) == 1


async def test_a_report_is_found_by_its_day(db: AsyncSession) -> None:
    with pytest.raises(ItemReportNotFoundError, match="2026-01-15"):
        await ItemReportService.get(db, DAY)

    made = await ItemReportService.make(db, DAY)

    assert await ItemReportService.get(db, DAY) is made


async def test_the_latest_days_come_first(db: AsyncSession) -> None:
    for days in (1, 3, 0, 2):
        await ItemReportService.make(db, DAY + timedelta(days=days))

    found = await ItemReportService.newest(db, limit=3)

    assert [report.day.day for report in found] == [18, 17, 16]


async def test_a_day_to_come_has_no_report(db: AsyncSession) -> None:
    for day in (datetime.now(UTC).date() + timedelta(days=2), date.max):
        with pytest.raises(ItemReportTooEarlyError, match=str(day)):
            await ItemReportService.make(db, day)


async def test_the_day_that_has_begun_may_have_one(db: AsyncSession) -> None:
    report = await ItemReportService.make(db, datetime.now(UTC).date())

    assert report.created == 0
