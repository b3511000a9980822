"""The relay loses no message if a process is killed or frozen, or a server is unavailable.

If this module is run as a program, it is a relay that is killed.
"""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dramatiq import Message
from sqlalchemy import text

from src.core.config import Settings, get_settings
from src.db.models.task import Task
from src.db.session import Database, DatabaseUnavailableError, open_database
from src.repositories.task import OutboxRepository
from src.tasks.broker import create_broker
from src.tasks.engine import relay as relays
from src.tasks.engine.brokers.base import (
    BURST,
    ERROR,
    PATIENCE,
    BrokerUnavailableError,
    Publisher,
    TaskBroker,
    in_bursts,
)
from src.tasks.engine.relay import Relay, open_relay
from tests import proxy
from tests.fixtures.commands import Process
from tests.fixtures.statements import planned, recorded
from tests.test_tasks.conftest import OpenBroker
from tests.test_tasks.workers import (
    LIMIT,
    Logs,
    count_unsent,
    events,
    eventually,
    get_task,
    queue_of,
    receive,
    send,
    settings_for,
)


class KillingPublisher:
    """Kills its process after it has published."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        await self._publisher.publish(messages)
        os.kill(os.getpid(), signal.SIGKILL)


class FakePublisher:
    """Stores the messages, or raises `error` if it is set."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.error: Exception | None = None
        self.calls = 0

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        self.calls += 1
        if self.error:
            raise self.error
        await asyncio.sleep(0)
        self.sent += [message.args[1] for message in messages]


async def fill(database: Database, broker: TaskBroker, count: int) -> list[str]:
    numbers = [str(number) for number in range(count)]
    for number in numbers:
        await send(database, broker, "note", "path", number)
    return numbers


@pytest.mark.slow
async def test_another_relay_sends_the_messages_of_a_killed_one(
    committing_database: Database,
    broker: TaskBroker,
    variables: dict[str, str],
    queue_settings: Settings,
    tmp_path: Path,
) -> None:
    """A sent message is sent again, because the transaction of the killed relay did not commit."""
    task_id = await send(committing_database, broker, "tracked_note", "path", "a")
    killed = Process("-m", __name__, log=tmp_path / "log", **variables)
    assert await asyncio.to_thread(killed.wait, LIMIT) == -signal.SIGKILL
    killed.kill()  # the processes that it started
    async with open_relay(queue_settings, broker):
        messages = await receive(broker, 2)

    assert {message.message_id for message in messages} == {task_id}
    assert await count_unsent(committing_database) == 0


@pytest.mark.slow
async def test_postgresql_ends_the_transaction_of_a_frozen_relay(
    committing_database: Database, broker: TaskBroker, queue_settings: Settings
) -> None:
    """Until then, another relay sends the later messages."""
    short = {"idle_in_transaction_session_timeout": "1000"}
    url = queue_settings.database_url.update_query_dict(short)
    await send(committing_database, broker, "note", "path", "taken")
    has_taken, thawed = asyncio.Event(), asyncio.Event()

    class FrozenPublisher(FakePublisher):
        async def publish(self, _: Sequence[Message[Any]]) -> None:
            has_taken.set()
            await thawed.wait()

    publisher = FakePublisher()
    async with open_database(url, pool_size=2) as database:
        frozen = asyncio.create_task(Relay(database, broker, FrozenPublisher()).send_batch())
        await has_taken.wait()
        await send(committing_database, broker, "note", "path", "later")
        other = Relay(database, broker, publisher)
        for _ in range(2):
            await eventually(other.send_batch, "a message")
        thawed.set()
        with pytest.raises(DatabaseUnavailableError):
            await frozen

    assert publisher.sent == ["later", "taken"]


async def test_concurrent_relays_send_each_message_once(
    committing_database: Database, broker: TaskBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "BATCH", 7)
    numbers = await fill(committing_database, broker, 100)
    publishers = [FakePublisher() for _ in range(4)]

    async def drain(publisher: FakePublisher) -> None:
        relay = Relay(committing_database, broker, publisher)
        while await relay.send_batch():
            pass

    await asyncio.gather(*map(drain, publishers))

    assert sorted(number for each in publishers for number in each.sent) == sorted(numbers)
    assert all(each.sent == sorted(each.sent, key=int) for each in publishers)


async def test_a_backlog_is_sent_in_batches_of_one_statement(
    committing_database: Database, broker: TaskBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "BATCH", 7)
    numbers = await fill(committing_database, broker, 20)
    publisher = FakePublisher()
    relay = Relay(committing_database, broker, publisher)
    relay.stop()
    with recorded(committing_database) as sent:
        await relay.run()

    assert publisher.sent == numbers
    assert publisher.calls == 3
    assert sent == ["BEGIN", "WITH", "COMMIT"] * 3


async def test_a_backlog_is_read_by_its_index(database: Database) -> None:
    async with database.transaction() as db:
        rows = "INSERT INTO outbox_message (body) SELECT '' FROM generate_series(1, 10000)"
        await db.execute(text(rows))
        with planned(await db.connection()) as plans:
            assert len(await OutboxRepository(db).take(limit=relays.BATCH)) == relays.BATCH

    assert "ix_outbox_message_due_at_id" in plans[0]
    assert "Seq Scan" not in plans[0]


async def test_requests_run_while_a_batch_is_prepared() -> None:
    turns = 0

    async def requests() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(requests())
    numbers = range(5 * BURST)
    assert [number async for number in in_bursts(numbers)] == [*numbers]
    running.cancel()

    assert turns >= 5


@pytest.mark.parametrize("error", [BrokerUnavailableError("No broker."), ZeroDivisionError()])
async def test_a_relay_that_fails_pauses_and_tries_again(
    committing_database: Database,
    broker: TaskBroker,
    open_broker: OpenBroker,
    *,
    monkeypatch: pytest.MonkeyPatch,
    logs: Logs,
    error: Exception,
) -> None:
    """New messages do not shorten the pause."""
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.2)
    publisher = FakePublisher()
    publisher.error = error
    relay = Relay(committing_database, open_broker(port=1), publisher)
    running = asyncio.create_task(relay.run())
    started = time.monotonic()
    numbers = await fill(committing_database, broker, 20)
    await eventually(lambda: publisher.calls >= 2, "another try")
    calls, seconds = publisher.calls, time.monotonic() - started
    publisher.error = None
    await eventually(lambda: len(publisher.sent) == 20, "all messages")
    await eventually(lambda: events(logs, "outbox_recovered"), "the end of the outage")
    relay.stop()
    await running

    assert publisher.sent == numbers
    assert calls <= seconds / 0.2 + 2
    assert len(events(logs, "outbox_stalled")) == 1


async def test_a_relay_recovers_from_an_outage_of_the_database(
    committing_database: Database,
    broker: TaskBroker,
    *,
    db_proxy: proxy.PostgresProxy,
    logs: Logs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The outage may start before or after the relay."""
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.05)
    await db_proxy.stop()
    await send(committing_database, broker, "note", "path", "a")
    async with open_relay(settings_for(db_proxy.url, {}), broker):
        for word in ("a", "b"):
            await eventually(lambda: events(logs, "outbox_stalled"), "an outage")
            await db_proxy.start()
            (message,) = await receive(broker)
            assert message.args[1] == word
            await db_proxy.stop()
            logs.clear()
            await send(committing_database, broker, "note", "path", "b")


async def test_a_relay_sends_the_remaining_messages_before_it_stops(
    committing_database: Database, broker: TaskBroker, queue_settings: Settings
) -> None:
    async with open_relay(queue_settings, broker):
        await send(committing_database, broker, "note", "path", "a")

    assert await count_unsent(committing_database) == 0
    await receive(broker)


async def test_a_relay_stops_in_time_if_the_broker_is_unavailable(
    committing_database: Database,
    broker: TaskBroker,
    open_broker: OpenBroker,
    queue_settings: Settings,
    *,
    monkeypatch: pytest.MonkeyPatch,
    logs: Logs,
) -> None:
    monkeypatch.setattr(relays, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(relays, "POLL_SECONDS", 2 * LIMIT)
    await send(committing_database, broker, "note", "path", "a")
    async with asyncio.timeout(LIMIT), open_relay(queue_settings, open_broker(port=1)):
        await eventually(lambda: events(logs, "outbox_stalled"), "an outage")

    assert await count_unsent(committing_database) == 1


async def add_rows(database: Database, *bodies: bytes) -> None:
    async with database.transaction() as db:
        await OutboxRepository(db).add_all(bodies)


async def test_row_that_cannot_be_decoded_becomes_a_dead_letter(
    committing_database: Database, broker: TaskBroker, queue_settings: Settings, logs: Logs
) -> None:
    """The others are sent in their order."""
    rows = [b"", b"\xff garbage", b'{"options": null}', b"[]", b"garbage" * 100_000]
    for number, row in enumerate(rows):
        await add_rows(committing_database, row)
        await send(committing_database, broker, "note", "path", str(number))
    async with open_relay(queue_settings, broker):
        messages = await receive(broker, len(rows))
        await eventually(
            lambda: len(events(logs, "outbox_message_rejected")) == len(rows), "all rows"
        )

    assert [message.args[1] for message in messages] == [*"01234"]
    assert await count_unsent(committing_database) == 0
    letters = await asyncio.to_thread(broker.dead_letters, queue_of(broker), limit=9)
    assert len(letters) == len(rows)
    assert all("cannot be decoded" in str(letter.message.options[ERROR]) for letter in letters)
    assert events(logs, "outbox_stalled") == []


async def test_message_that_cannot_be_sent_waits_and_then_becomes_a_dead_letter(
    committing_database: Database, broker: TaskBroker, logs: Logs
) -> None:
    """The broker refuses it, or it has a queue of another release. The others are sent."""

    class RefusingPublisher(FakePublisher):
        async def publish(self, messages: Sequence[Message[Any]]) -> None:
            if any(message.args[1] == "refused" for message in messages):
                raise ZeroDivisionError
            await super().publish(messages)

    publisher = RefusingPublisher()
    relay = Relay(committing_database, broker, publisher)
    refused = broker.get_actor("note").message("path", "refused")
    unknown = Message[None]("unknown", "note", ("path", "unknown"), {}, {})
    for age in (0, PATIENCE):
        for message in (refused, unknown):
            timestamp = message.message_timestamp - age
            body = replace(message, message_timestamp=timestamp).encode()
            await add_rows(committing_database, body)
            await send(committing_database, broker, "note", "path", "good")
    async with committing_database.transaction() as session:  # as if its actor were tracked
        session.add(Task(id=UUID(unknown.message_id), actor="note"))
    assert await relay.send_batch() == 8
    assert await relay.send_batch() == 0

    assert publisher.sent == ["good"] * 4
    assert await count_unsent(committing_database) == 2
    letters = await asyncio.to_thread(broker.dead_letters, queue_of(broker), limit=9)
    assert {(each.id, each.message.options[ERROR]) for each in letters} == {
        (refused.message_id, "It cannot be sent: ZeroDivisionError: "),
        (unknown.message_id, "No actor uses the queue unknown."),
    }
    assert len(events(logs, "outbox_message_postponed")) == 2
    assert (await get_task(committing_database, unknown.message_id)).status == "failed"


async def send_batch_and_die() -> None:
    settings = get_settings()
    broker = create_broker(settings)
    broker.declare_queue(os.environ["TEST_QUEUE"])
    async with (
        open_database(settings.database_url, pool_size=1) as database,
        broker.open_publisher() as publisher,
    ):
        await Relay(database, broker, KillingPublisher(publisher)).send_batch()


if __name__ == "__main__":
    asyncio.run(send_batch_and_die())
