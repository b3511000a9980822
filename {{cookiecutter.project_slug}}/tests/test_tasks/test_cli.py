"""The commands `python cli.py tasks dead`."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from dramatiq import Message

from dev import stack
from src.core.config import Settings
from src.db.session import Database
from src.domain.task import TaskStatus
from src.tasks import cli as commands
from src.tasks.engine.brokers.base import TaskBroker
from tests.fixtures.commands import Outcome, Run
from tests.test_tasks.conftest import OpenBroker
from tests.test_tasks.workers import (
    enqueue,
    eventually,
    get_task,
    queue_of,
    send,
    wait_for_dead_letter,
    wait_for_end,
    working,
)

pytestmark = pytest.mark.usefixtures("logs")  # keeps log lines out of the output

Dead = Callable[..., Outcome]


@pytest.fixture
def dead(
    run: Run, broker: TaskBroker, queue_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Dead:
    """Run a command with the test's broker and database."""
    monkeypatch.setattr(commands, "broker", broker)
    monkeypatch.setattr(commands, "get_settings", lambda: queue_settings)

    def dead(*arguments: str) -> Outcome:
        return run("tasks", "dead", *arguments)

    return dead


async def make_dead(broker: TaskBroker, path: Path, count: int) -> list[str]:
    """Make this many tasks fail, one after another. Return the message ids."""
    ids: list[str] = []
    async with working(broker, threads=1):
        for number in range(count):
            ids.append(enqueue(broker, "refuse", str(path / str(number))))
            await eventually(
                lambda: broker.queue_state(queue_of(broker)).dead == len(ids), "a dead letter"
            )
            await asyncio.sleep(0.01)
    return ids


async def test_dead_letters_are_listed_newest_first_then_purged_and_requeued(
    broker: TaskBroker, dead: Dead, tmp_path: Path
) -> None:
    ids = await make_dead(broker, tmp_path, 3)
    listed = await asyncio.to_thread(dead, "list", "--limit", "2")
    purged = await asyncio.to_thread(dead, "purge", ids[0])
    requeued = await asyncio.to_thread(dead, "requeue", "--all")

    head, newest, second = listed.out.splitlines()
    assert (listed.status, head) == (0, f"Dead letters in queue {queue_of(broker)}: 3")
    assert (newest.split()[0], second.split()[0]) == (ids[2], ids[1])
    assert "refuse(" in newest
    assert newest.endswith("RefusedError: The task is refused.")
    assert (purged.out, requeued.out) == ("Purged: 1.\n", "Requeued: 2.\n")
    state = broker.queue_state(queue_of(broker))
    assert (state.waiting, state.dead) == (2, 0)


@pytest.mark.usefixtures("relay")
async def test_show_prints_the_error_and_requeue_resets_the_retries(
    broker: TaskBroker,
    open_broker: OpenBroker,
    committing_database: Database,
    dead: Dead,
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "words")
    task_id = await send(committing_database, broker, "tracked_fail", path, 4)
    async with working(broker):
        await wait_for_dead_letter(broker)
    shown = await asyncio.to_thread(dead, "show", task_id)
    failed = await get_task(committing_database, task_id)
    result = await asyncio.to_thread(dead, "requeue", task_id)
    queued = await get_task(committing_database, task_id)
    async with working(open_broker()):
        task = await wait_for_end(committing_database, task_id)

    assert shown.status == 0
    assert f"actor: tracked_fail\nqueue: {queue_of(broker)}\nfailed at: 20" in shown.out
    assert f'args: ["{path}", 4]' in shown.out
    assert "attempts: 4\nerror: ValueError: hunter2\nTraceback (most recent" in shown.out
    assert failed.status is TaskStatus.FAILED
    assert (result.status, result.out) == (0, "Requeued: 1.\n")
    assert (queued.status, queued.problem, queued.finished_at) == (TaskStatus.QUEUED, None, None)
    assert (task.status, task.result, task.attempts) == (TaskStatus.SUCCEEDED, "result", 5)


async def test_letters_that_other_programs_wrote_are_shown_and_purged(
    broker: TaskBroker, dead: Dead
) -> None:
    """Only the one that can be decoded is requeued. Its id is not that of a task."""
    queue = queue_of(broker)
    broker.add_dead_letter(queue, "strange", b"\xff garbage")
    message = Message[None](
        queue,
        "note",
        ("\ud800",),
        {"\ud801": 1},
        {"error": "\ud802", "traceback": 1},
        message_id="x",
    )
    broker.add_dead_letter(queue, "x", message.encode())
    (strange,) = {each.id for each in broker.dead_letters(queue, limit=9)} - {"x"}
    listed = await asyncio.to_thread(dead, "list")
    shown = [await asyncio.to_thread(dead, "show", each) for each in (strange, "x")]
    requeued = await asyncio.to_thread(dead, "requeue", "--all")
    purged = await asyncio.to_thread(dead, "purge", strange)

    assert listed.out.startswith(f"Dead letters in queue {queue}: 2\n")
    for output in (listed.out, shown[0].out):
        assert "The message cannot be decoded. It is not JSON" in output
    assert "error: \\ud802\n1" in shown[1].out
    assert (requeued.out, purged.out) == ("Requeued: 1.\n", "Purged: 1.\n")


@pytest.mark.parametrize("command", ["requeue", "purge"])
async def test_ids_or_all_are_required_and_an_unknown_id_changes_nothing(
    broker: TaskBroker, dead: Dead, tmp_path: Path, command: str
) -> None:
    known = await make_dead(broker, tmp_path, 1)
    unknown = await asyncio.to_thread(dead, command, *known, "unknown")
    neither, both = [
        await asyncio.to_thread(dead, command, *given) for given in ((), ("--all", "unknown"))
    ]

    assert (unknown.status, unknown.err) == (
        1,
        "Error: There is no dead letter with the id unknown.",
    )
    for result in (neither, both):
        assert result.status == 2
        assert "pass either message IDs or --all" in result.err
    assert broker.queue_state(queue_of(broker)).dead == 1


@pytest.mark.parametrize(
    "arguments", [("list",), ("show", "x"), ("requeue", "--all"), ("purge", "--all")]
)
async def test_an_unavailable_broker_is_reported_in_one_line(
    open_broker: OpenBroker,
    dead: Dead,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str],
) -> None:
    monkeypatch.setattr(commands, "broker", open_broker(port=1))
    result = await asyncio.to_thread(dead, *arguments)

    assert result.status == 1
    assert result.err.startswith("Error: R")
    assert "is unavailable: " in result.err
    assert "\n" not in result.err.strip()


def test_dev_runs_a_worker_beside_the_api() -> None:
    assert {"api", "worker"} <= stack.default_programs(Settings(ENV="test")).keys()
