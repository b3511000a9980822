"""A message that kills its worker each time becomes a dead letter."""

from pathlib import Path

import pytest
from sqlalchemy import select

from src.db.models.task import RedeliveredMessage
from src.db.session import Database
from src.domain.task import TaskStatus
from src.repositories.task import RedeliveryRepository
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.middleware.poison import MAX_STARTS
from tests.test_tasks.actors import words
from tests.test_tasks.conftest import Start
from tests.test_tasks.workers import (
    dead_letter,
    ended,
    enqueue,
    eventually,
    queue_of,
    send,
    working,
)


@pytest.fixture
def _redelivered(monkeypatch: pytest.MonkeyPatch, broker: TaskBroker) -> None:
    """Mark each message as one whose worker has died."""
    monkeypatch.setattr(broker, "is_redelivered", lambda _: True)


async def counted(database: Database) -> dict[str, int]:
    async with database.reads() as session:
        rows = await session.scalars(select(RedeliveredMessage))
        return {row.message_id: row.starts for row in rows}


@pytest.mark.slow
async def test_a_message_that_kills_its_workers_dies_alone(
    broker: TaskBroker, start: Start, tmp_path: Path
) -> None:
    """The messages that its workers had taken too are processed."""
    path, other = tmp_path / "words", tmp_path / "other"
    enqueue(broker, "kill_worker", str(path))
    for number in range(6):
        enqueue(broker, "note", str(other), str(number))

    def dead() -> int:
        return broker.queue_state(queue_of(broker)).dead

    worker = start(threads=1)
    while not dead():
        if worker.poll() is not None:
            worker = start(threads=1)
        await eventually(lambda: dead() or worker.poll() is not None, "a death")  # noqa: B023 - called at once
    await eventually(lambda: len(words(other)) >= 6, "the other messages")

    letter = await dead_letter(broker)
    assert letter.message.actor_name == "kill_worker"
    assert letter.message.options["error"] == "Its worker died 3 times as it ran."
    assert words(path) == ["died"] * 4
    assert set(words(other)) == {str(number) for number in range(6)}


@pytest.mark.usefixtures("_redelivered", "relay")
async def test_a_task_that_was_started_too_often_is_not_started_again(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    """One that ends, be it by a failure, is counted no longer."""
    path, broken = tmp_path / "words", tmp_path / "broken"
    await send(committing_database, broker, "fail", str(broken), 99)
    ids = [
        await send(committing_database, broker, "tracked_note", str(path), word) for word in "ab"
    ]
    async with committing_database.transaction() as db:
        for task_id, starts in zip(ids, (MAX_STARTS, MAX_STARTS - 1), strict=True):
            for _ in range(starts):
                await RedeliveryRepository(db).count_start(task_id)
    async with working(broker):
        tasks = [await ended(committing_database, each) for each in ids]
        queue = queue_of(broker)
        await eventually(lambda: broker.queue_state(queue).dead == 2, "both dead letters")

    assert [task.status for task in tasks] == [TaskStatus.FAILED, TaskStatus.SUCCEEDED]
    assert tasks[0].problem is not None
    assert tasks[0].problem["detail"] == "It was not completed."
    assert words(path) == ["b"]
    assert await counted(committing_database) == {}
