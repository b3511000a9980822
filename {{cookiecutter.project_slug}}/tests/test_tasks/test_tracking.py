"""The status of tracked tasks. A task that has ended is not started again."""

import asyncio
import math
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from sqlalchemy import URL, func, select

from src.core.config import Settings
from src.db.models.task import RedeliveredMessage, Task
from src.db.session import Database, open_database
from src.domain.task import TaskStatus
from src.repositories.task import TaskRepository
from src.tasks.engine import maintenance
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.middleware import retries, tracking
from src.tasks.engine.relay import open_relay
from tests import proxy
from tests.pgbouncer import needs_pgbouncer
from tests.test_tasks.actors import words, write
from tests.test_tasks.conftest import OpenBroker
from tests.test_tasks.workers import (
    Delays,
    Logs,
    events,
    eventually,
    get_task,
    send,
    settings_for,
    wait_for_dead_letter,
    wait_for_end,
    working,
)

pytestmark = pytest.mark.usefixtures("relay")


async def test_coroutine_that_is_not_awaited_fails_the_task(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    """For example, a decorator replaces the `async def` by a plain function."""

    async def work() -> None: ...

    def wrapper() -> Coroutine[Any, Any, None]:
        return work()

    dramatiq.actor(queue_name=queue, broker=broker, tracked=True)(wrapper)
    task_id = await send(committing_database, broker, "wrapper")
    async with working(broker):
        letter = await wait_for_dead_letter(broker)

    assert letter.message.options["error"].startswith("The actor returned a coroutine")
    assert (await get_task(committing_database, task_id)).status is TaskStatus.FAILED


async def test_a_task_is_queued_then_running_then_succeeded(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    path = tmp_path / "awaited"
    task_id = await send(committing_database, broker, "tracked_count", str(path), 4)
    queued = await get_task(committing_database, task_id)

    async def half_done() -> Task | None:
        task = await get_task(committing_database, task_id)
        return task if task.done == 2 else None

    async with working(broker):
        running: Task = await eventually(half_done, "half of it")
        write(str(path), "continue")
        task = await wait_for_end(committing_database, task_id)

    assert (queued.status, queued.attempts, queued.started_at) == (TaskStatus.QUEUED, 0, None)
    assert (running.status, running.attempts, running.total) == (TaskStatus.RUNNING, 1, 4)
    assert (task.status, task.attempts, task.result, task.done) == (TaskStatus.SUCCEEDED, 1, 4, 4)
    assert (task.actor, task.problem) == ("tracked_count", None)
    assert task.started_at
    assert task.finished_at
    assert task.created_at <= task.started_at <= task.finished_at


@needs_pgbouncer
async def test_tasks_run_behind_a_pooler(
    open_broker: OpenBroker, committing_database: Database, pooler_url: URL, tmp_path: Path
) -> None:
    broker = open_broker(url=pooler_url)
    settings = settings_for(pooler_url, {})
    async with open_relay(settings, broker), open_database(pooler_url, pool_size=2) as database:
        task_id = await send(database, broker, "tracked_note", str(tmp_path / "words"), "a")
        async with working(broker):
            task = await wait_for_end(committing_database, task_id)

    assert task.status is TaskStatus.SUCCEEDED


async def test_only_tracked_actors_have_a_row(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    """A task that is sent without the outbox gets its row at its first start."""
    path = tmp_path / "words"
    await send(committing_database, broker, "note", str(path), "a")
    message = await asyncio.to_thread(broker.get_actor("tracked_note").send, str(path), "a")
    async with working(broker, threads=1):
        await eventually(lambda: len(words(path)) == 2, "both of them")
        task = await wait_for_end(committing_database, message.message_id)

    assert (task.actor, task.status, task.attempts) == ("tracked_note", TaskStatus.SUCCEEDED, 1)
    async with committing_database.reads() as session:
        assert [str(key) for key in await session.scalars(select(Task.id))] == [str(task.id)]


@pytest.mark.parametrize(
    ("actor", "arguments", "attempts", "problem"),
    [
        ("tracked_refuse", (), 1, ("refused", "Refused", "The task is refused.")),
        ("tracked_fail", (9,), 4, ("task-failed", "Task failed", "An unexpected error occurred.")),
    ],
    ids=["domain error", "other error"],
)
async def test_only_a_domain_error_is_shown_and_is_not_retried(
    committing_database: Database,
    broker: TaskBroker,
    tmp_path: Path,
    *,
    actor: str,
    arguments: tuple[Any, ...],
    attempts: int,
    problem: tuple[str, str, str],
) -> None:
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, actor, str(path), *arguments)
    async with working(broker):
        task = await wait_for_end(committing_database, task_id)

    code, title, detail = problem
    assert (task.status, task.attempts, task.result) == (TaskStatus.FAILED, attempts, None)
    assert len(words(path)) == attempts
    assert task.problem == {
        "type": f"urn:problem-type:{code}",
        "title": title,
        "detail": detail,
    }


async def test_a_task_is_queued_between_two_attempts(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    broker.get_actor("tracked_fail").options |= {"min_backoff": 600_000, "max_backoff": 600_000}
    task_id = await send(committing_database, broker, "tracked_fail", str(tmp_path / "words"), 1)

    async def is_queued_again() -> bool:
        task = await get_task(committing_database, task_id)
        return task.attempts == 1 and task.status is TaskStatus.QUEUED

    async with working(broker):
        await eventually(is_queued_again, "the end of the first attempt")

    assert (await get_task(committing_database, task_id)).finished_at is None


async def test_the_end_of_an_attempt_does_not_change_a_task_whose_next_attempt_runs(
    committing_database: Database,
) -> None:
    async with committing_database.transaction() as db:
        tasks = TaskRepository(db)
        (task_id,) = await tasks.add_all(["act"])
        assert [await tasks.start(task_id, "act") for _ in range(2)] == [1, 2]
        await tasks.mark_queued(task_id, 1)

    task = await get_task(committing_database, str(task_id))
    assert task.status is TaskStatus.RUNNING


async def test_a_message_that_is_delivered_twice_runs_once(
    committing_database: Database, broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, "tracked_note", str(path), "first")
    async with working(broker, threads=1):
        await wait_for_end(committing_database, task_id)
        actor = broker.get_actor("tracked_note")
        broker.enqueue(actor.message(str(path), "second").copy(message_id=task_id))
        await send(committing_database, broker, "note", str(path), "third")
        await eventually(lambda: "third" in words(path), "the third message")

    assert words(path) == ["first", "third"]
    assert broker.dead_letters(queue, limit=9) == []


@pytest.mark.parametrize("result", [{1}, math.nan, "\ud800"], ids=["set", "nan", "surrogate"])
async def test_a_result_that_is_not_json_is_a_dead_letter(
    committing_database: Database, broker: TaskBroker, queue: str, result: object
) -> None:
    """The task is not retried, because its result would be the same."""
    work = dramatiq.actor(broker=broker, queue_name=queue, tracked=True, actor_name="work")
    work(lambda: result)
    task_id = await send(committing_database, broker, "work")
    async with working(broker):
        task = await wait_for_end(committing_database, task_id)
        letter = await wait_for_dead_letter(broker)

    assert (task.status, task.attempts) == (TaskStatus.FAILED, 1)
    assert letter.message.options["error"].startswith("The result is not JSON: ")
    assert letter.died_at is not None


async def test_a_message_is_acknowledged_after_its_outcome_is_recorded(
    committing_database: Database,
    open_broker: OpenBroker,
    db_proxy: proxy.PostgresProxy,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logs: Logs,
) -> None:
    """The worker waits until PostgreSQL is available."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.1)
    broker = open_broker(url=db_proxy.url)
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, "tracked_nap", str(path), 0.5)
    async with working(broker, threads=1) as worker:
        await eventually(lambda: words(path), "its start")
        await db_proxy.stop()
        await eventually(lambda: events(logs, "task_outcome_not_recorded"), "a warning")
        running = await get_task(committing_database, task_id)
        unfinished = worker.work_queue.unfinished_tasks
        await db_proxy.start()
        task = await wait_for_end(committing_database, task_id)

    assert words(path) == ["started", "ended"]
    assert (running.status, unfinished) == (TaskStatus.RUNNING, 1)
    assert (task.status, task.attempts, task.result) == (TaskStatus.SUCCEEDED, 1, "rested")


@pytest.mark.parametrize("actor", ["tracked_note", "note"], ids=["tracked", "redelivered"])
async def test_a_task_does_not_start_while_its_start_cannot_be_recorded(
    committing_database: Database,
    open_broker: OpenBroker,
    db_proxy: proxy.PostgresProxy,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    actor: str,
) -> None:
    """These attempts do not count as failures."""
    broker = open_broker(url=db_proxy.url)
    monkeypatch.setattr(broker, "is_redelivered", lambda _: actor == "note")
    monkeypatch.setattr(retries, "POSTPONE_MILLISECONDS", 100)
    path = tmp_path / "words"
    delays = Delays()
    broker.add_middleware(delays)
    await db_proxy.stop()
    await send(committing_database, broker, actor, str(path), "a")
    async with working(broker):
        await eventually(lambda: len(delays.messages) > 4, "more attempts than max_retries")
        assert not words(path)
        await db_proxy.start()
        await eventually(lambda: words(path), "its start")

    assert "Unexpected failure" not in caplog.text


async def test_workers_delete_tasks_that_ended_task_history_days_ago(
    committing_database: Database,
    broker: TaskBroker,
    queue_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tasks that have not ended are not deleted."""
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
        await eventually(is_pruned, "the deletion of old rows")
