"""The job `archive_stale_items`."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from src.core.config import Settings
from src.db.models.item import Item
from src.db.session import Database
from src.domain.item import ItemStatus
from src.schedulers import jobs
from src.schedulers.context import JobContext, use_context


def item(name: str, status: ItemStatus, *, days: int) -> Item:
    return Item(name=name, status=status, updated_at=datetime.now(UTC) - timedelta(days=days))


async def test_only_stale_items_are_archived_in_batches(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that is already archived is not changed again."""
    monkeypatch.setattr(jobs, "BATCH", 2)
    async with database.transaction() as db:
        for n in range(3):
            db.add(item(f"stale {n}", ItemStatus.DRAFT, days=11))
        db.add(item("active", ItemStatus.ACTIVE, days=11))
        db.add(item("archived", ItemStatus.ARCHIVED, days=11))
        db.add(item("fresh", ItemStatus.DRAFT, days=9))

    settings = Settings(ENV="test", ITEMS_STALE_AFTER_DAYS=10)
    with use_context(JobContext(settings, database)):
        await jobs.archive_stale_items()

    async with database.reads() as reads:
        found = await reads.execute(select(Item.name, Item.status, Item.version))
    states = {name: (status.value, version) for name, status, version in found}
    assert states.pop("fresh") == ("draft", 1)
    assert states.pop("archived") == ("archived", 1)
    assert len(states) == 4
    assert set(states.values()) == {("archived", 2)}
