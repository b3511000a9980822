"""A failed attempt is followed by another attempt or by a dead letter."""

import asyncio
import time
from pathlib import Path

import dramatiq
import pytest
from dramatiq.common import current_millis
from sqlalchemy import select

from src.db.models.task import RedeliveredMessage
from src.db.session import Database
from src.domain.task import TaskStatus
from src.repositories.task import RedeliveryRepository
from src.tasks import enqueue_message
from src.tasks.broker import MAX_RETRIES
from src.tasks.engine.brokers.base import PATIENCE, TaskBroker
from src.tasks.engine.middleware import retries
from src.tasks.engine.middleware.poison import MAX_STARTS
from tests import proxy
from tests.test_tasks.actors import words, write
from tests.test_tasks.conftest import OpenBroker, Start
from tests.test_tasks.workers import (
    Delays,
    Logs,
    enqueue,
    events,
    eventually,
    queue_of,
    receive,
    send,
    wait_for_dead_letter,
    wait_for_end,
    working,
)


@pytest.mark.parametrize(
    ("actor", "options", "error"),
    [
        ("exit_process", {"max_retries": 0}, "SystemExit: A task must not end its worker."),
        ("interrupt", {"max_retries": 0}, "KeyboardInterrupt: "),
        ("exit_process", {"max_age": 1}, "The message is older than its max_age."),
    ],
    ids=["exit", "interrupt", "age"],
)
async def test_a_dead_letter_has_the_error_and_the_next_task_runs(
    broker: TaskBroker, tmp_path: Path, actor: str, options: dict[str, int], error: str
) -> None:
    enqueue(broker, actor, **options)
    await asyncio.sleep(0.05)
    async with working(broker):
        letter = await wait_for_dead_letter(broker)
        enqueue(broker, "note", str(tmp_path / "words"), "next")
        await eventually(lambda: words(tmp_path / "words"), "the next task")

    assert letter.message.options["error"] == error


async def test_backoff_grows(broker: TaskBroker, queue: str) -> None:
    """From one second to ten minutes. Metrics do not count the backoff as delay."""

    def fail_always() -> None:
        raise ValueError

    delays = Delays()
    broker.add_middleware(delays)
    dramatiq.actor(queue_name=queue, broker=broker)(fail_always)
    for number in range(MAX_RETRIES):
        enqueue(broker, "fail_always", retries=number)
    async with working(broker, threads=1):
        await eventually(lambda: len(delays.messages) == MAX_RETRIES, "all failures")

    for number, (message, delay) in enumerate(delays.messages):
        assert min(2**number, 300) <= delay / 1000 <= min(2 ** (number + 1), 600)
        assert message.options["requeue_timestamp"] == message.options["eta"]
    assert broker.dead_letters(queue, limit=9) == []


@pytest.mark.parametrize("when", ["another clock is ahead", "the clock is set back"])
async def test_retry_does_not_wait_longer_than_its_delay(
    broker: TaskBroker, queue: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    attempts = 0
    delays = Delays()
    broker.add_middleware(delays)
    now = time.time

    def fail_once() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            if when == "another clock is ahead":
                monkeypatch.setattr(time, "time", lambda: now() + 3600)
            raise ValueError

    dramatiq.actor(queue_name=queue, broker=broker, max_backoff=1500)(fail_once)
    enqueue(broker, "fail_once")
    async with working(broker, threads=1):
        await eventually(lambda: delays.messages, "a failure")
        if when == "the clock is set back":
            await asyncio.sleep(0.5)  # for the worker to receive the message
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
        await eventually(lambda: attempts == 2, "the retry")


@pytest.mark.slow
async def test_a_task_that_exceeds_its_time_limit_is_cancelled_and_retried(
    broker: TaskBroker, tmp_path: Path
) -> None:
    path, after = tmp_path / "words", tmp_path / "after"
    enqueue(broker, "nap_async", str(path), 60, time_limit=1500, max_retries=1)
    async with working(broker, threads=1):
        letter = await wait_for_dead_letter(broker)
        enqueue(broker, "note", str(after), "a")
        await eventually(lambda: words(after), "the next task")

    assert words(path) == ["started", "cancelled"] * 2
    assert letter.message.options["error"].startswith("TimeLimitExceeded")


@pytest.mark.slow
async def test_a_retry_waits_for_the_broker(
    broker: TaskBroker,
    open_broker: OpenBroker,
    broker_proxy: proxy.Proxy,
    *,
    tmp_path: Path,
    logs: Logs,
) -> None:
    """Dramatiq alone would acknowledge the message and lose it."""
    path, awaited = tmp_path / "words", tmp_path / "awaited"

    def fail_later() -> None:
        write(str(path), "tried")
        while not awaited.exists():
            time.sleep(0.02)
        raise ValueError

    broker_behind_proxy = open_broker(port=broker_proxy.port)
    for each in (broker, broker_behind_proxy):
        dramatiq.actor(queue_name=queue_of(each), broker=each, max_retries=1)(fail_later)
    enqueue(broker, "fail_later", min_backoff=10, max_backoff=20)
    async with working(broker_behind_proxy):
        await eventually(lambda: words(path), "the first attempt")
        await broker_proxy.stop()
        awaited.touch()
        await eventually(lambda: events(logs, "task_retry_postponed"), "a warning")
        await broker_proxy.start()
        await eventually(lambda: len(words(path)) >= 2, "the second attempt")
        # There may be more attempts: the broker redelivers unacknowledged messages.
        await eventually(lambda: broker.queue_state(queue_of(broker)).dead, "a dead letter")


async def test_a_hook_that_raises_loses_no_message(
    broker: TaskBroker, tmp_path: Path, logs: Logs
) -> None:
    """Dramatiq alone would log the error and acknowledge the message."""

    def choose(_retries: int, _error: BaseException) -> bool:
        raise ZeroDivisionError

    broker.get_actor("fail").options["retry_when"] = choose
    enqueue(broker, "fail", str(tmp_path / "words"), 99)
    async with working(broker):
        letter = await wait_for_dead_letter(broker)

    assert letter.message.options["error"] == "ValueError: hunter2"
    assert len(events(logs, "task_retry_abandoned")) == 1


async def test_a_task_that_changes_its_arguments_loses_no_message(
    broker: TaskBroker, queue: str
) -> None:
    """The dead letter has the arguments as they were sent."""

    def change(names: list[object]) -> None:
        names.append(object())
        raise ValueError

    dramatiq.actor(queue_name=queue, broker=broker)(change)
    enqueue(broker, "change", ["Lamp"])
    async with working(broker):
        letter = await wait_for_dead_letter(broker)

    assert letter.message.args == (["Lamp"],)
    assert letter.died_at is not None


# --- messages for another release -------------------------------------------------------------


async def test_message_waits_for_a_release_that_can_run_it(
    broker: TaskBroker,
    open_broker: OpenBroker,
    *,
    tmp_path: Path,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The actor is unknown, or has not yet an argument. No attempt is counted."""
    monkeypatch.setattr(retries, "POSTPONE_MILLISECONDS", 50)
    path = tmp_path / "words"

    def tell(word: str, again: str) -> None:
        write(str(path), f"{word}-{again}")

    newer = open_broker()
    del newer.actors["note"]
    for name in ("note", "tell"):
        tell_twice = dramatiq.actor(
            actor_name=name, queue_name=queue_of(broker), broker=newer, max_retries=0
        )(tell)
        tell_twice.send(name, again="yes")
    async with working(broker):
        await eventually(lambda: len(events(logs, "task_not_runnable")) >= 6, "both three times")
    async with working(newer):
        await eventually(lambda: len(words(path)) == 2, "both tasks")

    assert set(words(path)) == {"note-yes", "tell-yes"}
    causes = {entry["cause"] for entry in events(logs, "task_not_runnable")}
    assert "This worker has no actor tell." in causes
    assert "The arguments do not fit the actor note: " in str(causes)
    assert await asyncio.to_thread(broker.dead_letters, queue_of(broker), limit=9) == []


@pytest.mark.usefixtures("relay")
async def test_message_that_no_release_can_run_becomes_a_dead_letter(
    committing_database: Database, broker: TaskBroker
) -> None:
    """A requeued one waits again. A tracked task has failed."""
    since = current_millis() - PATIENCE
    tracked = dramatiq.actor(
        actor_name="new", queue_name=queue_of(broker), broker=broker, tracked=True
    )(lambda: None)
    async with committing_database.transaction() as db:
        message = tracked.message_with_options(not_runnable_since=since)
        task_id = await enqueue_message(db, message)
        await enqueue_message(db, tracked.message_with_options(not_runnable_since=since + 600_000))
    await eventually(lambda: broker.queue_state(queue_of(broker)).waiting == 2, "both messages")
    del broker.actors["new"]
    async with working(broker):
        letter = await wait_for_dead_letter(broker)
        task = await wait_for_end(committing_database, task_id)

    assert letter.id == task_id
    assert letter.message.options["error"] == "NotRunnableError: This worker has no actor new."
    assert task.status is TaskStatus.FAILED
    assert await asyncio.to_thread(broker.requeue_dead, queue_of(broker)) == 1
    (requeued,) = await receive(broker)
    assert requeued.message_id == task_id
    assert "not_runnable_since" not in requeued.options


# --- poison messages --------------------------------------------------------------------------


@pytest.fixture
def _redelivered(monkeypatch: pytest.MonkeyPatch, broker: TaskBroker) -> None:
    """Mark each message as redelivered."""
    monkeypatch.setattr(broker, "is_redelivered", lambda _: True)


@pytest.mark.slow
@pytest.mark.usefixtures("relay")
async def test_only_the_poison_message_becomes_a_dead_letter(
    broker: TaskBroker, committing_database: Database, start: Start, tmp_path: Path
) -> None:
    """It kills workers that run other tasks, and have fetched more. Those tasks succeed."""
    path, others, awaited = (tmp_path / name for name in ("words", "others", "awaited"))
    enqueue(broker, "crash", str(path), str(others), 5)
    ids = [
        await send(committing_database, broker, "tracked_wait_for_file", str(others), str(awaited))
        for _ in range(5)
    ]
    ids += [
        await send(committing_database, broker, "tracked_note", str(tmp_path / "notes"), "fetched")
        for _ in range(4)
    ]

    def dead() -> int:
        return broker.queue_state(queue_of(broker)).dead

    worker = start(threads=6)
    while not dead():
        if worker.poll() is not None:
            worker = start(threads=6)
        await eventually(lambda: dead() or worker.poll() is not None, "a death")  # noqa: B023 - called immediately
        if len(words(path)) >= 2:  # from now on, each of the tasks runs alone
            awaited.touch()
    tasks = [await wait_for_end(committing_database, each) for each in ids]

    letter = await wait_for_dead_letter(broker)
    assert letter.message.actor_name == "crash"
    assert letter.message.options["error"] == "Poison message: its worker died at least 3 times."
    assert words(path) == ["died"] * (MAX_STARTS + 1)
    assert [task.status for task in tasks] == [TaskStatus.SUCCEEDED] * len(ids)


@pytest.mark.usefixtures("_redelivered", "relay")
async def test_a_poison_message_is_not_started_again(
    committing_database: Database, broker: TaskBroker, tmp_path: Path
) -> None:
    """The count of a message is deleted when its task succeeds or fails."""
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
        tasks = [await wait_for_end(committing_database, each) for each in ids]
        queue = queue_of(broker)
        await eventually(lambda: broker.queue_state(queue).dead == 2, "both dead letters")

    assert [task.status for task in tasks] == [TaskStatus.FAILED, TaskStatus.SUCCEEDED]
    assert tasks[0].problem is not None
    assert tasks[0].problem["detail"] == "The task did not complete."
    assert words(path) == ["b"]
    async with committing_database.reads() as session:
        assert (await session.scalars(select(RedeliveredMessage))).all() == []
