"""Workers as processes: what they begin is done, whatever becomes of them."""

import asyncio
import signal
from pathlib import Path

import pytest

from src.db.session import Database
from src.domain.task import TaskStatus
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.dramatiq_patches import DEBOUNCE_SECONDS
from tests.test_tasks.actors import STOPPING, words
from tests.test_tasks.conftest import Start
from tests.test_tasks.workers import LIMIT, enqueue, eventually, over, send, state_of, working

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("relay")
async def test_another_worker_does_what_a_killed_one_has_begun(
    broker: TaskBroker, committing_database: Database, start: Start, tmp_path: Path
) -> None:
    """And what it had only taken too."""
    path, other = tmp_path / "words", tmp_path / "other"
    killed = start(threads=1)
    task_id = await send(committing_database, broker, "tracked_nap", str(path), 1.0)
    await eventually(lambda: words(path), "its begin")
    for word in ("a", "b"):
        enqueue(broker, "note", str(other), word)
    start(threads=1)
    killed.kill()
    running = await state_of(committing_database, task_id)
    done = await over(committing_database, task_id)
    await eventually(lambda: len(words(other)) == 2, "what the killed one had taken in advance")

    assert running.status is TaskStatus.RUNNING
    assert (done.status, done.attempts) == (TaskStatus.SUCCEEDED, 2)
    assert words(path) == ["begun", "begun", "ended"]
    assert sorted(words(other)) == ["a", "b"]


async def test_sigterm_lets_a_running_task_finish(
    broker: TaskBroker, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has not begun is left to others, at once: they need not take the worker for dead."""
    monkeypatch.setattr(broker, "heartbeat_timeout", 3_600_000, raising=False)
    path, other, gate = tmp_path / "words", tmp_path / "other", tmp_path / "gate"
    worker = start(threads=1, patience=LIMIT)
    enqueue(broker, "hold", str(path), str(gate))
    await eventually(lambda: words(path), "its begin")
    for word in ("a", "b", "c"):
        enqueue(broker, "note", str(other), word)
    worker.process.send_signal(signal.SIGTERM)
    await worker.until_told(STOPPING)
    gate.touch()
    assert await worker.ended() == 0
    left = words(other)
    async with working(broker):
        await eventually(lambda: len(words(other)) == 3, "what was left")

    assert words(path) == ["begun", "ended"]
    assert left == []


@pytest.mark.parametrize("actor", ["nap", "doze"])
async def test_a_second_sigterm_ends_it_at_once(
    broker: TaskBroker, start: Start, tmp_path: Path, actor: str
) -> None:
    path = tmp_path / "words"
    worker = start(patience=600.0)
    enqueue(broker, actor, str(path), 600.0)
    await eventually(lambda: words(path), "its begin")
    worker.process.send_signal(signal.SIGTERM)
    await worker.until_told(STOPPING)
    await asyncio.sleep(1.5 * DEBOUNCE_SECONDS)
    assert worker.process.poll() is None
    worker.process.send_signal(signal.SIGTERM)

    assert await worker.ended() != 0


async def test_a_task_that_outlasts_the_shutdown_is_done_again(
    broker: TaskBroker, start: Start, tmp_path: Path
) -> None:
    path, gate = tmp_path / "words", tmp_path / "gate"
    first = start(patience=0.5)
    enqueue(broker, "hold", str(path), str(gate))
    await eventually(lambda: words(path), "its begin")
    first.process.send_signal(signal.SIGTERM)
    assert await first.ended() == 0
    gate.touch()
    start()
    await eventually(lambda: words(path)[-1] == "ended", "its end")

    assert words(path) == ["begun", "begun", "ended"]
