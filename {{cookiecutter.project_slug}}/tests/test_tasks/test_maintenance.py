"""What a worker forgets."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from src.core.config import Settings
from src.db.models.task import RedeliveredMessage, Task
from src.db.session import Database
from src.domain.task import TaskStatus
from src.repositories import retention


async def test_what_was_over_long_ago_is_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches; a task that is not over is kept, however old."""
    monkeypatch.setattr(retention, "BATCH", 2)
    now = datetime.now(UTC)
    async with database.transaction() as db:
        for days in (0, 4, 6, 7, 8):
            then = now - timedelta(days=days)
            db.add(Task(actor=f"{days}", status=TaskStatus.SUCCEEDED, finished_at=then))
            db.add(RedeliveredMessage(message_id=f"{days}", starts=1, started_at=then))
        db.add(Task(actor="queued", created_at=now - timedelta(days=99)))

    settings = Settings(ENV="test", TASK_HISTORY_DAYS=5)
    await retention.delete_expired(database.transaction, settings, "TASK_HISTORY_DAYS")

    async with database.reads() as session:
        tasks = set(await session.scalars(select(Task.actor)))
        messages = set(await session.scalars(select(RedeliveredMessage.message_id)))
    assert tasks == {"0", "4", "queued"}
    assert messages == {"0", "4"}
