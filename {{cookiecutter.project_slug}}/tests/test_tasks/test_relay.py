"""The relay loses nothing, whoever dies, freezes or is away."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
from dramatiq import Message

from src.core.config import ROOT, Settings
from src.db.session import Database, DatabaseUnavailableError, open_database
from src.tasks.engine import relay as relays
from src.tasks.engine.brokers.base import BrokerUnavailableError, TaskBroker
from src.tasks.engine.relay import Relay, open_relay
from tests.leash import Leash
from tests.proxy import Proxy
from tests.proxy import Relay as Wire
from tests.test_tasks.workers import (
    LIMIT,
    Logs,
    events,
    eventually,
    queue_of,
    received,
    send,
    unsent,
)


class Post:
    """A publisher that keeps what it is given, and may be away."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.is_away = False
        self.asked = 0

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        self.asked += 1
        if self.is_away:
            raise BrokerUnavailableError("The post is closed.")
        await asyncio.sleep(0)
        self.sent += [message.args[1] for message in messages]


async def fill(database: Database, broker: TaskBroker, count: int) -> list[str]:
    numbers = [str(number) for number in range(count)]
    for number in numbers:
        await send(database, broker, "note", "path", number)
    return numbers


async def die(variables: dict[str, str], when: str) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.test_tasks.killed_relay", when,
        cwd=ROOT, env=os.environ | variables, start_new_session=True,
    )  # fmt: skip
    leash = Leash(process.pid)
    try:
        async with asyncio.timeout(LIMIT):
            return await process.wait()
    finally:
        leash.pull()


@pytest.mark.slow
async def test_another_relay_sends_what_a_killed_process_has_committed(
    committing_database: Database,
    broker: TaskBroker,
    queue: str,
    variables: dict[str, str],
    queue_settings: Settings,
) -> None:
    await send(committing_database, broker, "note", "path", "a")
    assert await die(variables, "before") == -signal.SIGKILL
    assert await received(broker, queue, 0) == []
    async with open_relay(queue_settings, broker):
        (message,) = await received(broker, queue)

    assert message.args == ("path", "a")
    assert await unsent(committing_database) == 0


@pytest.mark.slow
async def test_what_was_sent_by_a_relay_that_was_killed_is_sent_again(
    committing_database: Database,
    broker: TaskBroker,
    queue: str,
    variables: dict[str, str],
    queue_settings: Settings,
) -> None:
    """Its transaction has not committed, and nobody knows."""
    task_id = await send(committing_database, broker, "tracked_note", "path", "a")
    assert await die(variables, "after") == -signal.SIGKILL
    async with open_relay(queue_settings, broker):
        messages = await received(broker, queue, 2)

    assert [message.message_id for message in messages] == [task_id, task_id]


@pytest.mark.slow
async def test_a_frozen_relay_does_not_hold_up_others(
    committing_database: Database,
    broker: TaskBroker,
    queue: str,
    variables: dict[str, str],
    queue_settings: Settings,
) -> None:
    """But for what it has taken, until it is killed or the server ends its transaction."""
    await send(committing_database, broker, "note", "path", "frozen")
    frozen = subprocess.Popen(  # noqa: ASYNC220 - it only starts it
        [sys.executable, "-m", "tests.test_tasks.killed_relay", "frozen"],
        cwd=ROOT,
        env=os.environ | variables,
        start_new_session=True,
    )
    leash = Leash(frozen.pid)
    try:
        await eventually(
            lambda: os.waitid(os.P_PID, frozen.pid, os.WSTOPPED | os.WNOHANG), "a stop"
        )
        async with open_relay(queue_settings, broker):
            await send(committing_database, broker, "note", "path", "free")
            (first,) = await received(broker, queue)
            leash.pull()
            (second,) = await received(broker, queue)
    finally:
        leash.pull()
        frozen.wait()

    assert (first.args[1], second.args[1]) == ("free", "frozen")


@pytest.mark.slow
async def test_the_server_ends_the_transaction_of_a_frozen_relay(
    committing_database: Database,
    broker: TaskBroker,
    queue_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays, "FREEZE_SECONDS", 1.0)
    await send(committing_database, broker, "note", "path", "a")
    has_taken, may_go_on = asyncio.Event(), asyncio.Event()

    class Frozen(Post):
        async def publish(self, _: Sequence[Message[Any]]) -> None:
            has_taken.set()
            await may_go_on.wait()

    post = Post()
    async with open_database(queue_settings.database_url, pool_size=2) as database:
        frozen = asyncio.create_task(Relay(database, Frozen()).sweep())
        await has_taken.wait()
        other = Relay(database, post)
        await eventually(other.sweep, "what the frozen one had taken")
        may_go_on.set()
        with pytest.raises(DatabaseUnavailableError):
            await frozen

    assert post.sent == ["a"]


async def test_relays_at_once_send_each_message_once(
    committing_database: Database, broker: TaskBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "BATCH", 7)
    numbers = await fill(committing_database, broker, 100)
    posts = [Post() for _ in range(4)]

    async def work(post: Post) -> None:
        relay = Relay(committing_database, post)
        while await relay.sweep():
            pass

    await asyncio.gather(*map(work, posts))

    assert sorted(number for post in posts for number in post.sent) == sorted(numbers)
    assert all(post.sent == sorted(post.sent, key=int) for post in posts)


async def test_while_the_broker_is_away_messages_wait(
    committing_database: Database, broker: TaskBroker, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    """With one warning; and the relay does not hurry, however much is committed."""
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.2)
    post = Post()
    post.is_away = True
    relay = Relay(committing_database, post)
    running = asyncio.create_task(relay.run())
    began = time.monotonic()
    for _ in range(20):
        await send(committing_database, broker, "note", "path", "a")
    await eventually(lambda: post.asked >= 2, "another try")
    asked, seconds = post.asked, time.monotonic() - began
    post.is_away = False
    await eventually(lambda: len(post.sent) == 20, "all messages")
    await eventually(lambda: events(logs, "outbox_recovered"), "the end of the outage")
    relay.stop()
    await running

    assert asked <= seconds / 0.2 + 2
    (warning,) = events(logs, "outbox_stalled")
    assert (warning["cause"], warning["level"]) == ("The post is closed.", "warning")


async def test_a_relay_recovers_from_an_outage_of_the_database(
    committing_database: Database,
    broker: TaskBroker,
    queue: str,
    *,
    remote_settings: Settings,
    line: Proxy,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Be it down as the process starts, or go down later."""
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.05)
    await line.stop()
    await send(committing_database, broker, "note", "path", "a")
    async with open_relay(remote_settings, broker):
        for word in ("a", "b"):
            await eventually(lambda: events(logs, "outbox_stalled"), "an outage")
            await line.start()
            (message,) = await received(broker, queue)
            assert message.args[1] == word
            await line.stop()
            logs.clear()
            await send(committing_database, broker, "note", "path", "b")


async def test_a_relay_goes_on_whatever_happens(
    committing_database: Database, broker: TaskBroker, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.05)

    class Faulty(Post):
        async def publish(self, messages: Sequence[Message[Any]]) -> None:
            if self.asked == 0:
                self.asked = 1
                raise ZeroDivisionError
            await super().publish(messages)

    post = Faulty()
    relay = Relay(committing_database, post)
    await send(committing_database, broker, "note", "path", "a")
    running = asyncio.create_task(relay.run())
    await eventually(lambda: post.sent, "the message")
    relay.stop()
    await running

    assert post.sent == ["a"]
    assert len(events(logs, "outbox_failed")) == 1


async def test_what_is_committed_last_is_sent_before_the_process_ends(
    committing_database: Database, broker: TaskBroker, queue: str, queue_settings: Settings
) -> None:
    async with open_relay(queue_settings, broker):
        await send(committing_database, broker, "note", "path", "a")

    assert await unsent(committing_database) == 0
    await received(broker, queue)


async def test_a_process_ends_in_time_while_the_broker_is_away(
    committing_database: Database,
    broker: TaskBroker,
    nobody_there: TaskBroker,
    queue_settings: Settings,
    *,
    monkeypatch: pytest.MonkeyPatch,
    logs: Logs,
) -> None:
    """And not when the relay would have tried again."""
    monkeypatch.setattr(relays, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(relays, "POLL_SECONDS", 2 * LIMIT)
    await send(committing_database, broker, "note", "path", "a")
    async with asyncio.timeout(LIMIT), open_relay(queue_settings, nobody_there):
        await eventually(lambda: events(logs, "outbox_stalled"), "an outage")

    assert await unsent(committing_database) == 1


async def test_messages_go_out_when_the_broker_is_back(
    committing_database: Database,
    distant: TaskBroker,
    wire: Wire,
    broker: TaskBroker,
    queue_settings: Settings,
) -> None:
    """As they were enqueued; to enqueue waits for nobody."""
    async with open_relay(queue_settings, distant):
        await send(committing_database, broker, "note", "path", "0")
        await received(broker, queue_of(broker))
        await wire.stop()
        numbers = await fill(committing_database, broker, 30)
        await wire.start()
        messages = await received(broker, queue_of(broker), 30)

    assert [message.args[1] for message in messages] == numbers
