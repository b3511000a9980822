"""What those who follow a task see of it; and that it is not done again once it is over."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from src.db.models.task import Task
from src.db.session import Database
from src.domain.task import TaskStatus
from src.repositories.task import TaskRepository
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.middleware import retries, tracking
from tests.proxy import Proxy
from tests.test_tasks.actors import words, write
from tests.test_tasks.workers import (
    Delays,
    Logs,
    events,
    eventually,
    over,
    send,
    state_of,
    working,
)

pytestmark = pytest.mark.usefixtures("relay")


async def test_a_task_is_queued_then_runs_and_is_done(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    path = tmp_path / "go on"
    task_id = await send(committing_database, broker, "tracked_count", str(path), 4)
    queued = await state_of(committing_database, task_id)

    async def is_half_done() -> Task | None:
        task = await state_of(committing_database, task_id)
        return task if task.done == 2 else None

    async with working(broker):
        running: Task = await eventually(is_half_done, "half of it")
        write(str(path), "go on")
        done = await over(committing_database, task_id)

    assert (queued.status, queued.attempts, queued.started_at) == (TaskStatus.QUEUED, 0, None)
    assert (running.status, running.attempts, running.total) == (TaskStatus.RUNNING, 1, 4)
    assert (done.status, done.attempts, done.result, done.done) == (TaskStatus.SUCCEEDED, 1, 4, 4)
    assert done.actor == "tracked_count"
    assert done.problem is None
    assert done.started_at
    assert done.finished_at
    assert done.created_at <= done.started_at <= done.finished_at


async def test_an_actor_that_is_not_tracked_leaves_no_trace(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    await send(committing_database, broker, "count", str(tmp_path), 2)
    task_id = await send(committing_database, broker, "tracked_note", str(tmp_path / "a"), "a")
    async with working(broker, threads=1):
        await over(committing_database, task_id)

    async with committing_database.reads() as session:
        assert [str(key) for key in await session.scalars(select(Task.id))] == [task_id]


async def test_one_that_is_sent_past_the_outbox_is_tracked_from_its_beginning(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    message = await asyncio.to_thread(broker.get_actor("tracked_note").send, str(path), "a")
    async with working(broker):
        await eventually(lambda: words(path), "the task's work")
        done = await over(committing_database, message.message_id)

    assert (done.actor, done.status, done.attempts) == ("tracked_note", TaskStatus.SUCCEEDED, 1)


async def test_a_broken_rule_is_told_as_the_api_tells_it(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, "tracked_refuse", str(path))
    async with working(broker):
        failed = await over(committing_database, task_id)

    assert (failed.status, failed.attempts, failed.result) == (TaskStatus.FAILED, 1, None)
    assert failed.problem == {
        "type": "urn:problem-type:no-lamps",
        "title": "No lamps",
        "detail": "There are no lamps.",
    }
    assert words(path) == ["refused"]


async def test_other_errors_tell_nothing_internal(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    task_id = await send(committing_database, broker, "tracked_fail", str(tmp_path / "words"), 9)
    async with working(broker):
        failed = await over(committing_database, task_id)

    assert (failed.status, failed.attempts) == (TaskStatus.FAILED, 4)
    assert failed.problem == {
        "type": "urn:problem-type:task-failed",
        "title": "Task failed",
        "detail": "An unexpected error occurred.",
    }


async def test_between_two_attempts_a_task_is_queued(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    broker.get_actor("tracked_fail").options |= {"min_backoff": 600_000, "max_backoff": 600_000}
    task_id = await send(committing_database, broker, "tracked_fail", str(tmp_path / "words"), 1)

    async def is_put_back() -> bool:
        task = await state_of(committing_database, task_id)
        return task.attempts == 1 and task.status is TaskStatus.QUEUED

    async with working(broker):
        await eventually(is_put_back, "the end of the first attempt")

    assert (await state_of(committing_database, task_id)).finished_at is None


async def test_an_attempt_that_ends_late_does_not_put_back_the_next_one(
    committing_database: Database,
) -> None:
    async with committing_database.transaction() as db:
        tasks = TaskRepository(db)
        (task_id,) = await tasks.add_all(["act"])
        first, second = await tasks.start(task_id, "act"), await tasks.start(task_id, "act")
        assert (first, second) == (1, 2)
        await tasks.mark_queued(task_id, 1)
        assert (await tasks.get(task_id)).status is TaskStatus.RUNNING  # type: ignore[union-attr]  # it is there


async def test_a_message_that_comes_twice_is_done_once(
    committing_database: Database, broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, "tracked_note", str(path), "first")
    async with working(broker, threads=1):
        await over(committing_database, task_id)
        actor = broker.get_actor("tracked_note")
        broker.enqueue(actor.message(str(path), "second").copy(message_id=task_id))
        await send(committing_database, broker, "note", str(path), "third")
        await eventually(lambda: "third" in words(path), "the third message")

    assert words(path) == ["first", "third"]
    assert broker.dead_letters(queue, limit=9) == []


@pytest.mark.parametrize("what", ["set", "nan", "surrogate"])
async def test_a_result_that_json_cannot_hold_is_a_failure(
    committing_database: Database, broker: TaskBroker, queue: str, tmp_path: Path, what: str
) -> None:
    """And a dead letter that says so; the task is not done again, since its result is no better."""
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, "tracked_bring", str(path), what)
    async with working(broker):
        failed = await over(committing_database, task_id)
        (letter,) = await eventually(lambda: broker.dead_letters(queue, limit=9), "a dead letter")

    assert failed.status is TaskStatus.FAILED
    assert letter.message.options["error"].startswith("The result is not JSON: ")
    assert letter.died_at is not None
    assert words(path) == [what]


async def test_the_end_waits_for_the_database(
    committing_database: Database,
    remote: TaskBroker,
    line: Proxy,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logs: Logs,
) -> None:
    """It is recorded when PostgreSQL is back; only then is the message acknowledged."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.1)
    path = tmp_path / "words"
    task_id = await send(committing_database, remote, "tracked_nap", str(path), 0.5)
    async with working(remote, threads=1) as worker:
        await eventually(lambda: words(path), "its begin")
        await line.stop()
        await eventually(lambda: events(logs, "task_waits_to_be_recorded"), "a warning")
        running = await state_of(committing_database, task_id)
        unfinished = worker.work_queue.unfinished_tasks
        await line.start()
        done = await over(committing_database, task_id)

    assert words(path) == ["begun", "ended"]
    assert (running.status, unfinished) == (TaskStatus.RUNNING, 1)
    assert (done.status, done.attempts, done.result) == (TaskStatus.SUCCEEDED, 1, "rested")


@pytest.mark.slow
async def test_no_attempt_is_lost_while_the_database_is_away(
    committing_database: Database,
    remote: TaskBroker,
    line: Proxy,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has not begun has not failed either, however often it is tried."""
    monkeypatch.setattr(retries, "POSTPONED", 100)
    path = tmp_path / "words"
    delays = Delays()
    remote.add_middleware(delays)
    await line.stop()
    task_id = await send(committing_database, remote, "tracked_note", str(path), "done")
    async with working(remote):
        await eventually(lambda: len(delays.noted) > 4, "more attempts than it has")
        await line.start()
        done = await over(committing_database, task_id)

    assert (done.status, done.attempts, words(path)) == (TaskStatus.SUCCEEDED, 1, ["done"])
