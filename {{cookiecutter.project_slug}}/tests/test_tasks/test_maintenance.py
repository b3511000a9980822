from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from src.core.config import Settings
from src.db.models.task import RedeliveredMessage, Task
from src.db.session import Database
from src.domain.task import TaskStatus
from src.tasks.engine import maintenance
from src.tasks.engine.brokers.base import TaskBroker
from tests.test_tasks.workers import eventually, working


async def test_workers_delete_what_ended_task_history_days_ago(
    committing_database: Database,
    broker: TaskBroker,
    queue_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task that has not ended stays, however old it is."""
    monkeypatch.setattr(maintenance, "PRUNE_SECONDS", 0.05)
    limit = datetime.now(UTC) - timedelta(days=queue_settings.TASK_HISTORY_DAYS)
    async with committing_database.transaction() as db:
        for name, age in {"old": timedelta(days=1), "recent": -timedelta(days=1)}.items():
            then = limit - age
            db.add(Task(actor=name, status=TaskStatus.SUCCEEDED, finished_at=then))
            db.add(RedeliveredMessage(message_id=name, starts=1, started_at=then))
        db.add(Task(actor="queued", created_at=limit - timedelta(days=99)))

    async def is_pruned() -> bool:
        async with committing_database.reads() as session:
            tasks = set(await session.scalars(select(Task.actor)))
            messages = await session.scalar(select(func.count(RedeliveredMessage.message_id)))
        assert {"recent", "queued"} <= tasks
        return tasks == {"recent", "queued"} and messages == 1

    async with working(broker):
        await eventually(is_pruned, "the end of what is old")
