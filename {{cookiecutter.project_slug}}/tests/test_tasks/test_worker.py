"""Worker processes lose no task, however they end."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from src import tasks
from src.db.session import Database
from src.domain.task import TaskStatus
from src.tasks.engine.actors import load_actors
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.dramatiq_patches import DEBOUNCE_SECONDS
from src.tasks.engine.middleware.poison import MAX_STARTS
from tests.fixtures.commands import Process, is_free
from tests.test_tasks.actors import STOPPING, words
from tests.test_tasks.conftest import Start
from tests.test_tasks.workers import (
    LIMIT,
    enqueue,
    eventually,
    get_task,
    queue_of,
    send,
    wait_for_end,
    working,
)


def test_actors_in_every_module_of_src_tasks_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jobs.py` need not import them."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "__init__.py").touch()
    code = "import dramatiq\n@dramatiq.actor(actor_name='write_{0}')\ndef write(): ..."
    (tmp_path / "mails.py").write_text(code.format("mail"))
    (tmp_path / "letters" / "love.py").write_text(code.format("letter"))
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    actors = dict(tasks.broker.actors)
    try:
        load_actors()
        assert {"write_mail", "write_letter"} <= tasks.broker.actors.keys()
    finally:
        tasks.broker.actors = actors


@pytest.mark.slow
@pytest.mark.usefixtures("relay")
async def test_another_worker_runs_the_tasks_of_a_killed_one(
    broker: TaskBroker, committing_database: Database, start: Start, tmp_path: Path
) -> None:
    """Both the running task and the messages that were fetched but not started."""
    path, other = tmp_path / "words", tmp_path / "other"
    killed = start(threads=1)
    task_id = await send(committing_database, broker, "tracked_nap", str(path), 1.0)
    await eventually(lambda: words(path), "its start")
    for word in ("a", "b"):
        enqueue(broker, "note", str(other), word)
    start(threads=1)
    killed.kill()
    running = await get_task(committing_database, task_id)
    task = await wait_for_end(committing_database, task_id)
    await eventually(lambda: len(words(other)) == 2, "the messages that were not started")

    assert running.status is TaskStatus.RUNNING
    assert (task.status, task.attempts) == (TaskStatus.SUCCEEDED, 2)
    assert words(path) == ["started", "started", "ended"]
    assert sorted(words(other)) == ["a", "b"]


@pytest.mark.slow
async def test_sigterm_lets_a_running_task_finish(
    broker: TaskBroker, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that are not started are requeued immediately, without a timeout."""
    monkeypatch.setattr(broker, "heartbeat_timeout", 3_600_000, raising=False)
    path, other, awaited = tmp_path / "words", tmp_path / "other", tmp_path / "awaited"
    worker = start(threads=1, shutdown_seconds=LIMIT)
    enqueue(broker, "wait_for_file", str(path), str(awaited))
    await eventually(lambda: words(path), "its start")
    for word in ("a", "b", "c"):
        enqueue(broker, "note", str(other), word)
    worker.send_signal(signal.SIGTERM)
    await asyncio.to_thread(worker.wait_for_log, STOPPING)
    awaited.touch()
    assert await asyncio.to_thread(worker.wait, LIMIT) == 0
    left = words(other)
    async with working(broker):
        await eventually(lambda: len(words(other)) == 3, "the other messages")

    assert words(path) == ["started", "ended"]
    assert left == []


@pytest.mark.slow
async def test_a_second_sigterm_stops_a_worker_immediately(
    broker: TaskBroker, start: Start, tmp_path: Path
) -> None:
    """Another worker runs the tasks without a timeout."""
    path = tmp_path / "words"
    worker = start(threads=3, shutdown_seconds=600.0, TEST_HEARTBEAT_TIMEOUT="3600000")
    for actor in ("nap", "nap_async", "nap_in_thread"):
        enqueue(broker, actor, str(path), 600.0)
    await eventually(lambda: words(path).count("started") == 3, "their starts")
    worker.send_signal(signal.SIGTERM)
    await asyncio.to_thread(worker.wait_for_log, STOPPING)
    await asyncio.sleep(1.5 * DEBOUNCE_SECONDS)
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)

    assert await asyncio.to_thread(worker.wait, LIMIT) != 0
    start(threads=3)
    await eventually(lambda: words(path).count("started") == 6, "their next starts")


@pytest.mark.slow
@pytest.mark.usefixtures("relay")
async def test_orderly_stops_are_not_counted(
    broker: TaskBroker, committing_database: Database, start: Start, tmp_path: Path
) -> None:
    """Interrupted tasks are requeued immediately. None of them is a poison message."""
    awaited = tmp_path / "awaited"
    actors = {
        "wait_for_file": str(awaited),
        "wait_for_file_async": str(awaited),
        "nap": 600.0,  # this one and the next cannot be interrupted
        "nap_in_thread": 600.0,
    }
    ids = [
        await send(committing_database, broker, f"tracked_{actor}", str(tmp_path / actor), argument)
        for actor, argument in actors.items()
    ]

    async def states() -> list[tuple[TaskStatus, int]]:
        tasks = [await get_task(committing_database, each) for each in ids]
        return [(task.status, task.attempts) for task in tasks]

    def started(times: int) -> bool:
        return all(words(tmp_path / actor).count("started") == times for actor in actors)

    stops = MAX_STARTS + 1
    for stop in range(1, stops + 1):
        worker = start(threads=4, shutdown_seconds=4.0, TEST_HEARTBEAT_TIMEOUT="3600000")
        await eventually(lambda: started(stop), "the next starts")  # noqa: B023 - called immediately
        os.killpg(worker.pid, signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, LIMIT) == 0
        assert await states() == [(TaskStatus.QUEUED, stop)] * len(ids)
        assert "It starts again." in worker.log_text  # not of a task that cannot be interrupted
        assert "Traceback" not in worker.log_text
    awaited.touch()
    start(threads=4)
    for each in ids[:2]:
        await wait_for_end(committing_database, each)
    await eventually(lambda: started(stops + 1), "the last starts")

    assert (await states())[:2] == [(TaskStatus.SUCCEEDED, stops + 1)] * 2
    assert words(tmp_path / "wait_for_file_async").count("cancelled") == stops
    assert broker.queue_state(queue_of(broker)).dead == 0


@pytest.mark.slow
async def test_worker_stops_while_a_task_blocks_the_event_loop(
    broker: TaskBroker, start: Start, tmp_path: Path
) -> None:
    """Also if the task was interrupted before. Its status and count cannot be recorded then."""
    path = tmp_path / "words"
    enqueue(broker, "tracked_block", str(path), 600.0)
    for stop in (1, 2):
        worker = start(shutdown_seconds=0.5, TEST_HEARTBEAT_TIMEOUT="3600000")
        await eventually(lambda: words(path).count("started") == stop, "a start")  # noqa: B023 - called immediately
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, LIMIT) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can open a pipe again")
@pytest.mark.parametrize("closes", [False, True], ids=["stuck", "gone"])
async def test_a_worker_runs_and_stops_while_no_one_reads_its_log(
    broker: TaskBroker, start: Start, tmp_path: Path, *, closes: bool
) -> None:
    path, log = tmp_path / "words", tmp_path / "worker-0.log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)  # it never reads
    try:
        worker = start()
        if closes:
            os.close(reader)
        for _ in range(3):
            enqueue(broker, "shout", str(path))
        await eventually(lambda: len(words(path)) == 3, "the ends")
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, LIMIT) == 0
    finally:
        if not closes:
            os.close(reader)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
async def test_all_processes_of_a_worker_stop_if_the_main_process_is_killed(
    variables: dict[str, str], tmp_path: Path
) -> None:
    command = ("cli.py", "worker", "--processes", "2", "--threads", "1", "--health-port", "0")
    worker = Process(*command, log=tmp_path / "log", HOST="127.0.0.1", **variables)
    try:
        await asyncio.to_thread(worker.wait_for_log, "health_server_started")
        address = re.search(r"127.0.0.1:(\d+)", worker.log_text)
        assert address
        worker.send_signal(signal.SIGKILL)
        await eventually(lambda: worker.log_text.count("worker_stopped") == 2, "their ends")
        await eventually(lambda: is_free(int(address[1])), "the end of the health server")
    finally:
        worker.kill()
