"""What becomes of attempts that fail: another one, with a pause before it, or a dead letter."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, Message, Middleware

from src.tasks.broker import MAX_RETRIES
from src.tasks.engine.brokers.base import DeadLetter, TaskBroker
from tests.proxy import Relay as Wire
from tests.test_tasks.actors import words
from tests.test_tasks.workers import Logs, enqueue, events, eventually, queue_of, working


async def dead(broker: TaskBroker, queue: str) -> DeadLetter:
    (letter,) = await eventually(
        lambda: asyncio.to_thread(broker.dead_letters, queue, limit=9), "a dead letter"
    )
    assert isinstance(letter, DeadLetter)
    return letter


async def test_an_attempt_that_fails_is_tracked_by_another(
    broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    enqueue(broker, "fail", str(path), 2)
    async with working(broker):
        await eventually(lambda: len(words(path)) == 3, "the third attempt")
        await eventually(lambda: not broker.queue_state(queue).waiting, "its end")

    assert broker.dead_letters(queue, limit=9) == []


async def test_who_has_failed_too_often_is_a_dead_letter(
    broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    enqueue(broker, "fail", str(path), 99)
    async with working(broker):
        letter = await dead(broker, queue)

    options = letter.message.options
    assert words(path) == ["tried"] * 4
    assert letter.died_at is not None
    assert timedelta() <= datetime.now(UTC) - letter.died_at < timedelta(minutes=5)
    assert options["error"] == "ValueError: hunter2"
    assert 'raise ValueError("hunter2")' in options["traceback"]
    assert abs(options["died_at"] - letter.died_at.timestamp() * 1000) < 60_000
    assert letter.message.args == (str(path), 99)


async def test_a_broken_rule_is_not_tried_again(
    broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    enqueue(broker, "refuse", str(path))
    async with working(broker):
        letter = await dead(broker, queue)

    assert words(path) == ["refused"]
    assert letter.message.options["error"] == "NoLampsError: There are no lamps."


async def test_a_message_that_is_too_old_is_not_begun(
    broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    enqueue(broker, "note", str(tmp_path / "words"), "a", max_age=1)
    await asyncio.sleep(0.05)
    async with working(broker):
        letter = await dead(broker, queue)

    assert letter.message.options["error"] == "It was too old."
    assert not words(tmp_path / "words")


async def test_pauses_grow(broker: TaskBroker, queue: str) -> None:
    """From a second on, to ten minutes; and the time until then is no delay."""
    pauses: list[float] = []

    class Watch(Middleware):
        def before_enqueue(self, _: Broker, message: Message[Any], delay: int | None) -> None:
            if delay is not None:
                pauses.append(delay / 1000)
                assert message.options["requeue_timestamp"] == message.options["eta"]

    def stumble() -> None:
        raise ValueError

    broker.add_middleware(Watch())
    actor = dramatiq.actor(queue_name=queue, broker=broker)(stumble)
    for tries in range(MAX_RETRIES):
        broker.enqueue(actor.message_with_options(retries=tries))
    async with working(broker, threads=1):
        await eventually(lambda: len(pauses) == MAX_RETRIES, "as many failures")

    for tries, pause in enumerate(pauses):
        assert min(2**tries, 300) <= pause <= min(2 ** (tries + 1), 600)
    assert broker.dead_letters(queue, limit=9) == []


@pytest.mark.slow
async def test_a_task_that_takes_too_long_is_cancelled(
    broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    """Like any other failure; the worker goes on."""
    path, after = tmp_path / "words", tmp_path / "after"
    enqueue(broker, "doze", str(path), 60, time_limit=1500, max_retries=1)
    async with working(broker, threads=1):
        letter = await dead(broker, queue)
        enqueue(broker, "note", str(after), "a")
        await eventually(lambda: words(after), "the next task")

    assert words(path) == ["begun", "cancelled"] * 2
    assert letter.message.options["error"].startswith("TimeLimitExceeded")


@pytest.mark.slow
async def test_a_retry_waits_for_the_broker(
    broker: TaskBroker, distant: TaskBroker, wire: Wire, *, tmp_path: Path, logs: Logs
) -> None:
    """Dramatiq alone would acknowledge the message, and so lose it."""
    path = tmp_path / "words"
    go_on = tmp_path / "go on"

    def stumble() -> None:
        with path.open("a") as file:
            file.write("tried\n")
        while not go_on.exists():
            time.sleep(0.02)
        raise ValueError

    declare = dramatiq.actor(
        queue_name=queue_of(broker), broker=distant, min_backoff=10, max_backoff=20, max_retries=1
    )
    broker.enqueue(declare(stumble).message())
    async with working(distant):
        await eventually(lambda: words(path), "the first attempt")
        await wire.stop()
        go_on.touch()
        await eventually(lambda: events(logs, "retry_waits_for_broker"), "a warning")
        await wire.start()
        await eventually(lambda: len(words(path)) >= 2, "the second attempt")
        # There may be more: what a broker had not been told about it has sent again.
        await eventually(lambda: broker.queue_state(queue_of(broker)).dead, "a dead letter")


async def test_a_hook_that_raises_loses_no_message(
    broker: TaskBroker, queue: str, tmp_path: Path, logs: Logs
) -> None:
    """Of a mistake in the options of an actor, say, Dramatiq would tell, and acknowledge."""

    def choose(_retries: int, _error: BaseException) -> bool:
        raise ZeroDivisionError

    broker.get_actor("fail").options["retry_when"] = choose
    enqueue(broker, "fail", str(tmp_path / "words"), 99)
    async with working(broker):
        letter = await dead(broker, queue)

    assert letter.message.options["error"] == "ValueError: hunter2"
    assert len(events(logs, "retry_failed")) == 1


async def test_arguments_that_are_no_json_any_more_lose_no_message(
    broker: TaskBroker, queue: str
) -> None:
    """A task may change a list that it is given; the dead letter has it as it came."""

    def spoil(names: list[object]) -> None:
        names.append(object())
        raise ValueError

    actor = dramatiq.actor(queue_name=queue, broker=broker)(spoil)
    broker.enqueue(actor.message(["Lamp"]))
    async with working(broker):
        letter = await dead(broker, queue)

    assert letter.message.args == (["Lamp"],)


async def test_a_task_that_exits_does_not_end_the_worker(
    broker: TaskBroker, queue: str, tmp_path: Path
) -> None:
    """On the event loop it would end all others too."""
    path = tmp_path / "words"
    enqueue(broker, "leave", max_retries=0)
    async with working(broker):
        letter = await dead(broker, queue)
        enqueue(broker, "doze", str(path), 0)
        await eventually(lambda: "ended" in words(path), "the next task")

    assert letter.message.options["error"] == "SystemExit: A task must not end its worker."
