"""Workers as processes: what they begin is done, whatever becomes of them."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from src.db.session import Database
from src.domain.task import TaskStatus
from src.tasks.brokers.base import TaskBroker
from tests.test_tasks.conftest import Start
from tests.test_tasks.deeds import words
from tests.test_tasks.working import enqueue, eventually, over, send, state_of, working

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("relay")
async def test_another_worker_does_what_a_killed_one_has_begun(
    broker: TaskBroker, own_database: Database, start: Start, tmp_path: Path
) -> None:
    """Within half a minute, and what it had only taken too."""
    path, other = tmp_path / "words", tmp_path / "other"
    killed = start(threads=1)
    task_id = await send(own_database, broker, "followed_nap", str(path), 1.0)
    await eventually(lambda: words(path), "its begin")
    for word in ("a", "b"):
        enqueue(broker, "note", str(other), word)
    start(threads=1)
    began = time.monotonic()
    killed.kill()
    running = await state_of(own_database, task_id)
    done = await over(own_database, task_id)
    await eventually(lambda: len(words(other)) == 2, "what the killed one had taken in advance")

    assert time.monotonic() - began < 30
    assert running.status is TaskStatus.RUNNING
    assert (done.status, done.attempts) == (TaskStatus.DONE, 2)
    assert words(path) == ["begun", "begun", "ended"]
    assert sorted(words(other)) == ["a", "b"]


async def test_sigterm_lets_a_running_task_finish(
    broker: TaskBroker, start: Start, tmp_path: Path
) -> None:
    """What has not begun is left to others, at once."""
    path, other = tmp_path / "words", tmp_path / "other"
    worker = start(threads=1)
    enqueue(broker, "nap", str(path), 2.0)
    await eventually(lambda: words(path), "its begin")
    for word in ("a", "b", "c"):
        enqueue(broker, "note", str(other), word)
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.ended() == 0
    left = words(other)
    began = time.monotonic()
    async with working(broker):
        await eventually(lambda: len(words(other)) == 3, "what was left")

    assert words(path) == ["begun", "ended"]
    assert left == []
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("actor", ["nap", "doze"])
async def test_a_second_sigterm_ends_it_at_once(
    broker: TaskBroker, start: Start, tmp_path: Path, actor: str
) -> None:
    path = tmp_path / "words"
    worker = start()
    enqueue(broker, actor, str(path), 60.0)
    await eventually(lambda: words(path), "its begin")
    worker.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(2)  # for it to wait for the task
    assert worker.process.poll() is None
    began = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)

    assert await worker.ended() != 0
    assert time.monotonic() - began < 8


async def test_a_task_that_outlasts_the_shutdown_is_done_again(
    broker: TaskBroker, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    first = start(patience=0.5)
    enqueue(broker, "nap", str(path), 3.0)
    await eventually(lambda: words(path), "its begin")
    first.process.send_signal(signal.SIGTERM)
    assert await first.ended() == 0
    start()
    await eventually(lambda: words(path)[-1] == "ended", "its end")

    assert words(path) == ["begun", "begun", "ended"]
