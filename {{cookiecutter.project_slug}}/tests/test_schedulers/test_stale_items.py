"""The jobs that come with the service."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from src.core.config import Settings
from src.db.models.item import Item
from src.db.models.scheduler import SchedulerRun
from src.db.session import Database
from src.domain.item import ItemStatus
from src.domain.scheduler import RunOutcome
from src.schedulers import jobs
from src.schedulers.context import JobContext, use_context
from src.schedulers.scheduler import build_scheduler


@pytest.fixture(autouse=True)
def context(database: Database) -> Iterator[None]:
    settings = Settings(ENV="test", ITEMS_STALE_AFTER_DAYS=10, SCHEDULER_HISTORY_DAYS=5)
    with use_context(JobContext(settings, database)):
        yield


def item(name: str, status: ItemStatus, *, days: int) -> Item:
    return Item(name=name, status=status, updated_at=datetime.now(UTC) - timedelta(days=days))


async def test_only_stale_items_are_archived_in_batches(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the rule of the domain lets be; an archived one is not touched again."""
    monkeypatch.setattr(jobs, "BATCH", 2)
    async with database.transaction() as db:
        for n in range(3):
            db.add(item(f"stale {n}", ItemStatus.DRAFT, days=11))
        db.add(item("active", ItemStatus.ACTIVE, days=11))
        db.add(item("archived", ItemStatus.ARCHIVED, days=11))
        db.add(item("fresh", ItemStatus.DRAFT, days=9))

    await jobs.archive_stale_items()

    async with database.reads() as reads:
        found = await reads.execute(select(Item.name, Item.status, Item.version))
    states = {name: (status.value, version) for name, status, version in found}
    assert states.pop("fresh") == ("draft", 1)
    assert states.pop("archived") == ("archived", 1)
    assert len(states) == 4
    assert set(states.values()) == {("archived", 2)}


async def test_old_history_is_pruned(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "BATCH", 2)
    ticks = [datetime.now(UTC) - timedelta(days=days) for days in (0, 4, 6, 7, 8)]
    done = {"job": "job", "holder": "x", "outcome": RunOutcome.SUCCEEDED}
    async with database.transaction() as db:
        db.add_all(SchedulerRun(tick=tick, started_at=tick, **done) for tick in ticks)

    await jobs.prune_run_history()

    async with database.reads() as reads:
        left = await reads.scalars(select(SchedulerRun.tick))
    assert set(left) == set(ticks[:2])


def test_the_jobs_are_what_the_scheduler_takes() -> None:
    scheduler = build_scheduler(jobs.setup_jobs)

    assert {job.id for job in scheduler.get_jobs()} == {"archive_stale_items", "prune_run_history"}
