"""Against messages that kill their workers."""

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from src.db.models.task import RedeliveredMessage
from src.db.session import Database
from src.domain.task import TaskStatus
from src.repositories.task import RedeliveryRepository, TaskRepository
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.middleware import retries
from src.tasks.engine.middleware.poison import MAX_STARTS
from tests.proxy import Proxy
from tests.test_tasks.actors import words
from tests.test_tasks.conftest import Start
from tests.test_tasks.workers import (
    Delays,
    Logs,
    enqueue,
    eventually,
    over,
    queue_of,
    send,
    working,
)


@pytest.fixture
def redelivered(monkeypatch: pytest.MonkeyPatch, broker: TaskBroker) -> None:
    """Let each message look as if a worker had died that had it."""
    monkeypatch.setattr(broker, "is_redelivered", lambda _: True)


async def counted(database: Database) -> dict[str, int]:
    async with database.reads() as session:
        rows = await session.scalars(select(RedeliveredMessage))
        return {row.message_id: row.starts for row in rows}


@pytest.mark.slow
async def test_a_message_that_kills_its_workers_dies_alone(
    broker: TaskBroker, start: Start, tmp_path: Path
) -> None:
    """After a few deaths; the others, that were in the same hands, are done."""
    path, other = tmp_path / "words", tmp_path / "other"
    enqueue(broker, "die", str(path))
    for number in range(6):
        enqueue(broker, "note", str(other), str(number))

    def dead() -> int:
        return broker.queue_state(queue_of(broker)).dead

    worker = start(threads=1)
    while not dead():
        if worker.process.poll() is not None:
            worker = start(threads=1)
        await eventually(lambda: dead() or worker.process.poll() is not None, "a death")  # noqa: B023 - called at once
    await eventually(lambda: len(words(other)) >= 6, "the innocent ones")

    (letter,) = broker.dead_letters(queue_of(broker), limit=9)
    assert letter.message.actor_name == "die"
    assert letter.message.options["error"] == "Its worker died 3 times as it ran."
    assert words(path) == ["died"] * 4
    assert set(words(other)) == {str(number) for number in range(6)}


@pytest.mark.usefixtures("redelivered", "relay")
async def test_a_task_that_is_delivered_again_is_counted_while_it_runs(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    """And no longer: who comes to an end, well or not, has killed nobody."""
    path = tmp_path / "words"
    await send(committing_database, broker, "fail", str(path), 99)
    task_id = await send(committing_database, broker, "tracked_count", str(path), 2)
    async with working(broker, threads=2):
        await over(committing_database, task_id)
        await eventually(lambda: broker.queue_state(queue_of(broker)).dead, "the other one's end")

    assert await counted(committing_database) == {}


@pytest.mark.usefixtures("redelivered", "relay")
async def test_a_task_that_was_started_too_often_is_given_up(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    ids = [
        await send(committing_database, broker, "tracked_note", str(path), word) for word in "ab"
    ]
    async with committing_database.transaction() as db:
        guard = RedeliveryRepository(db)
        for _ in range(MAX_STARTS):
            await guard.count_start(ids[0])
        for _ in range(MAX_STARTS - 1):
            await guard.count_start(ids[1])
    async with working(broker):
        tasks = [await over(committing_database, each) for each in ids]
        await eventually(lambda: broker.dead_letters(queue_of(broker), limit=9), "a dead letter")

    assert [task.status for task in tasks] == [TaskStatus.FAILED, TaskStatus.SUCCEEDED]
    assert tasks[0].problem is not None
    assert tasks[0].problem["detail"] == "It was not completed."
    assert words(path) == ["b"]
    assert await counted(committing_database) == {}


@pytest.mark.usefixtures("relay")
async def test_while_nobody_can_count_it_is_not_begun(
    remote: TaskBroker,
    line: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "is_redelivered", lambda _: True)
    monkeypatch.setattr(retries, "POSTPONED", 100)
    path = tmp_path / "words"
    delays = Delays()
    remote.add_middleware(delays)
    await line.stop()
    remote.enqueue(remote.get_actor("note").message(str(path), "a"))
    async with working(remote):
        await eventually(lambda: len(delays.noted) >= 2, "two vain attempts")
        assert not words(path)
        await line.start()
        await eventually(lambda: words(path), "its begin")


@pytest.mark.usefixtures("redelivered", "relay")
async def test_a_task_that_is_over_is_not_counted(
    committing_database: Database, broker: TaskBroker, tmp_path: Path, logs: Logs
) -> None:
    """Nor does it trouble the guard, which has not seen it begin."""
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, "tracked_note", str(path), "a")
    async with committing_database.transaction() as db:
        await TaskRepository(db).finish(UUID(task_id), TaskStatus.FAILED)
    await send(committing_database, broker, "note", str(path), "b")
    async with working(broker, threads=1):
        await eventually(lambda: words(path), "the other one")

    assert words(path) == ["b"]
    assert await counted(committing_database) == {}
    assert not [line for line in logs if line["level"] in {"error", "critical"}]
