"""What is done about dead letters, by `python cli.py tasks dead`."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from src.core.config import Settings
from src.db.session import Database
from src.domain.task import TaskStatus
from src.tasks import cli as dead_letters
from src.tasks.engine.brokers.base import TaskBroker
from tests.test_cli import Outcome, Run, run
from tests.test_tasks.workers import (
    enqueue,
    eventually,
    over,
    queue_of,
    send,
    state_of,
    working,
)

__all__ = ["run"]

pytestmark = pytest.mark.usefixtures("logs")  # else they are in the output too

Dead = Callable[..., Outcome]


@pytest.fixture
def dead(
    run: Run, broker: TaskBroker, queue_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Dead:
    """Call the command, on the test's broker and database."""
    monkeypatch.setattr(dead_letters, "broker", broker)
    monkeypatch.setattr(dead_letters, "get_settings", lambda: queue_settings)

    def dead(*arguments: str) -> Outcome:
        return run("tasks", "dead", *arguments)

    return dead


async def die(broker: TaskBroker, path: Path, count: int) -> list[str]:
    """Let so many tasks fail for good, one after another; return their ids."""
    queue = queue_of(broker)
    async with working(broker, threads=1):
        for number in range(count):
            enqueue(broker, "refuse", str(path / str(number)))
            await eventually(lambda: broker.queue_state(queue).dead == number + 1, "a death")  # noqa: B023 - called at once
            await asyncio.sleep(0.01)
    return [letter.id for letter in broker.dead_letters(queue, limit=99)][::-1]


async def test_list_shows_the_newest_first(broker: TaskBroker, dead: Dead, tmp_path: Path) -> None:
    ids = await die(broker, tmp_path, 3)
    status, out, _ = await asyncio.to_thread(dead, "list", "--limit", "2")

    head, newest, second = out.splitlines()
    assert (status, head) == (0, f"{queue_of(broker)}: 3 dead")
    assert newest.split()[0] == ids[2]
    assert second.split()[0] == ids[1]
    assert "refuse(" in newest
    assert newest.endswith("NoLampsError: There are no lamps.")


async def test_show_tells_what_it_failed_of(broker: TaskBroker, dead: Dead, tmp_path: Path) -> None:
    enqueue(broker, "fail", str(tmp_path / "words"), 99)
    async with working(broker):
        (letter,) = await eventually(
            lambda: broker.dead_letters(queue_of(broker), limit=9), "a dead letter"
        )
    status, out, _ = await asyncio.to_thread(dead, "show", letter.id)

    assert status == 0
    assert f"fail, queue {queue_of(broker)}, died 20" in out
    assert f'args: ["{tmp_path / "words"}", 99]' in out
    assert "attempts: 4" in out
    assert "error: ValueError: hunter2" in out
    assert "Traceback (most recent call last):" in out


@pytest.mark.usefixtures("relay")
async def test_a_requeued_task_is_done_as_if_it_had_never_failed(
    broker: TaskBroker,
    successor: TaskBroker,
    committing_database: Database,
    dead: Dead,
    tmp_path: Path,
) -> None:
    path = tmp_path / "words"
    task_id = await send(committing_database, broker, "tracked_fail", str(path), 4)
    async with working(broker):
        failed = await over(committing_database, task_id)
        await eventually(lambda: broker.queue_state(queue_of(broker)).dead, "a dead letter")
    result = await asyncio.to_thread(dead, "requeue", task_id)
    queued = await state_of(committing_database, task_id)
    left = broker.queue_state(queue_of(broker)).dead
    async with working(successor):
        done = await over(committing_database, task_id)

    assert failed.status is TaskStatus.FAILED
    assert (result.status, result.out, left) == (0, "Requeued: 1.\n", 0)
    assert (queued.status, queued.problem, queued.finished_at) == (TaskStatus.QUEUED, None, None)
    assert (done.status, done.result, done.attempts) == (TaskStatus.SUCCEEDED, "done", 5)


async def test_requeue_and_purge_take_some_or_all(
    broker: TaskBroker, dead: Dead, tmp_path: Path
) -> None:
    ids = await die(broker, tmp_path, 5)
    purged = await asyncio.to_thread(dead, "purge", ids[0], ids[1])
    requeued = await asyncio.to_thread(dead, "requeue", "--all")

    assert (purged.out, requeued.out) == ("Purged: 2.\n", "Requeued: 3.\n")
    state = broker.queue_state(queue_of(broker))
    assert (state.waiting, state.dead) == (3, 0)


@pytest.mark.parametrize("command", ["requeue", "purge"])
async def test_one_must_say_which(dead: Dead, command: str) -> None:
    for arguments in ([], ["--all", "some-id"]):
        result = await asyncio.to_thread(dead, command, *arguments)
        assert result.status == 2
        assert "name some, or give --all" in result.err


@pytest.mark.parametrize("command", ["show", "requeue", "purge"])
async def test_an_unknown_id_is_an_error_in_a_sentence(
    broker: TaskBroker, dead: Dead, tmp_path: Path, command: str
) -> None:
    """And nothing is done to those that are known."""
    known = await die(broker, tmp_path, 1)
    ids = [*(known if command != "show" else []), "nobody"]
    result = await asyncio.to_thread(dead, command, *ids)

    assert (result.status, result.err) == (1, "Error: There is no dead letter nobody.")
    assert broker.queue_state(queue_of(broker)).dead == 1


@pytest.mark.parametrize(
    "arguments", [("list",), ("show", "x"), ("requeue", "--all"), ("purge", "--all")]
)
async def test_without_a_broker_it_is_an_error_in_a_sentence(
    nobody_there: TaskBroker, dead: Dead, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str]
) -> None:
    monkeypatch.setattr(dead_letters, "broker", nobody_there)
    result = await asyncio.to_thread(dead, *arguments)

    assert result.status == 1
    assert result.err.startswith("Error: R")
    assert "cannot be used: " in result.err
    assert "\n" not in result.err.strip()
