"""Messages are sent if, and only if, the transaction that enqueues them commits."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq import ActorNotFound, Message
from sqlalchemy import select

from src.core.config import Settings
from src.db.models.task import OutboxMessage, Task
from src.db.session import Database, ReadOnlySessionError
from src.tasks import enqueue, enqueue_message
from src.tasks.engine import relay as relays
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.relay import Relay, open_relay
from src.tasks.outbox import MAX_BYTES, enqueue_messages
from tests.fixtures.notes import Note
from tests.test_tasks.workers import LIMIT, count_unsent, eventually, receive, send


async def test_messages_are_sent_when_the_transaction_commits(
    committing_database: Database,
    broker: TaskBroker,
    queue_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The relay does not wait for its next poll."""
    monkeypatch.setattr(relays, "POLL_SECONDS", 2 * LIMIT)

    async def is_sent() -> bool:
        return not await count_unsent(committing_database)

    async with open_relay(queue_settings, broker):
        for word in "abcd":
            await send(committing_database, broker, "note", "path", word)
            await eventually(is_sent, "an empty outbox")

    assert [message.args[1] for message in await receive(broker, 4)] == [*"abcd"]


async def test_rolled_back_messages_are_never_sent(
    committing_database: Database, broker: TaskBroker, relay: Relay
) -> None:
    """This includes savepoints. Nothing is sent before the outer transaction commits."""
    note = broker.get_actor("note")
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("tracked_note"), "path", "rolled back")
        await db.rollback()
    async with committing_database.transaction() as db:
        async with db.begin_nested():
            await enqueue(db, note, "path", "released")
        savepoint = await db.begin_nested()
        await enqueue(db, note, "path", "rolled back")
        await savepoint.rollback()
        await enqueue(db, note, "path", "last")
        assert await relay.send_batch() == 0
        assert (await db.scalars(select(Task))).all() == []

    messages = await receive(broker, 2)
    assert [message.args[1] for message in messages] == ["released", "last"]


@pytest.mark.usefixtures("relay")
async def test_messages_of_a_transaction_keep_their_order(
    committing_database: Database, broker: TaskBroker
) -> None:
    """Over several batches. Tracked messages have the ids of their tasks."""
    note, tracked = broker.get_actor("note"), broker.get_actor("tracked_note")
    async with committing_database.transaction() as db:
        for number in range(20):
            await enqueue(db, note, "path", str(number))
        ids = await enqueue_messages(
            db,
            [
                (tracked if number % 2 else note).message("path", str(number))
                for number in range(20, 1200)
            ],
        )
        tasks = await db.scalars(select(Task.id).where(Task.actor == "tracked_note"))
        assert {str(key) for key in tasks} == {*ids[1::2]}

    messages = await receive(broker, 1200)
    assert [message.args[1] for message in messages] == [str(number) for number in range(1200)]
    assert [message.message_id for message in messages][20:] == ids


@pytest.mark.usefixtures("relay")
async def test_delayed_messages_wait_in_the_database(
    committing_database: Database, broker: TaskBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.05)
    note = broker.get_actor("note")
    started = time.time()
    async with committing_database.transaction() as db:
        soon = note.message_with_options(args=("path", "soon"), max_retries=0)
        await enqueue_message(db, soon, delay=timedelta(seconds=0.3))
        await enqueue_message(db, note.message("path", "next year"), delay=timedelta(days=400))
        await enqueue(db, note, "path", "now")

    messages = await receive(broker, 2)
    due = {message.args[1]: message.message_timestamp for message in messages}
    assert [message.options.get("max_retries") for message in messages] == [None, 0]
    assert time.time() - started >= 0.3
    assert due["soon"] >= (started + 0.3) * 1000 - 1  # its max_age counts from this time
    assert await count_unsent(committing_database) == 1


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        ("x" * MAX_BYTES, ValueError, "Store the data in a table"),
        (uuid4(), TypeError, "The argument word of note cannot be stored: Object of type UUID"),
        ([datetime.now(UTC)], TypeError, "argument word .* type datetime .* value.isoformat()"),
        (Note(text="a"), TypeError, "argument word .* type SampleNote"),
        ([{"a": {1: "b"}}], TypeError, "argument word .* JSON has no int keys"),
    ],
    ids=["large", "UUID", "datetime", "row", "key"],
)
async def test_large_or_unserializable_arguments_are_rejected(
    committing_database: Database, broker: TaskBroker, argument: Any, error: type, words: str
) -> None:
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("note"), "path", "x" * (MAX_BYTES - 1000))
        with pytest.raises(error, match=words):
            await enqueue(db, broker.get_actor("note"), "path", argument)
        assert len((await db.scalars(select(OutboxMessage))).all()) == 1


async def test_arguments_that_do_not_fit_are_rejected(
    committing_database: Database, broker: TaskBroker
) -> None:
    async with committing_database.transaction() as db:
        with pytest.raises(TypeError, match="do not fit the actor note: missing a required argume"):
            await enqueue(db, broker.get_actor("note"), "path")


async def test_delay_as_an_option_is_rejected(
    committing_database: Database, broker: TaskBroker
) -> None:
    """Dramatiq would ignore it."""
    message = broker.get_actor("note").message_with_options(args=("path", "a"), delay=60_000)
    async with committing_database.transaction() as db:
        with pytest.raises(TypeError, match="pass it to enqueue_message"):
            await enqueue_message(db, message)


@pytest.mark.parametrize(
    "options",
    [
        {"throws": [ValueError]},
        {"time_limit": timedelta(minutes=1)},
        {"time_limit": 0},
        {"max_retries": "3"},
        {"priority": "high"},
    ],
    ids=str,
)
def test_invalid_option_is_rejected(broker: TaskBroker, options: dict[str, Any]) -> None:
    """A worker would lose the task or ignore the option."""
    (name,) = options
    with pytest.raises(ValueError, match=f"The actor work has {name}=.*: pass a"):
        dramatiq.actor(actor_name="work", broker=broker, **options)(lambda: None)
    unlimited = dramatiq.actor(max_retries=None, throws=(OSError, ValueError), broker=broker)
    assert unlimited(test_invalid_option_is_rejected).actor_name in broker.actors


def test_generator_is_rejected(broker: TaskBroker) -> None:
    """A worker would call it, and run nothing of it."""

    def work() -> Iterator[int]:
        yield 1

    with pytest.raises(ValueError, match="contains `yield`"):
        dramatiq.actor(broker=broker)(work)


async def test_actor_outside_src_tasks_is_rejected(broker: TaskBroker) -> None:
    async def mail() -> None: ...

    mail.__module__ = "src.services.mail"
    with pytest.raises(ValueError, match=r"is in src\.services\.mail, which workers do not import"):
        dramatiq.actor(broker=broker)(mail)


async def test_a_read_only_session_and_an_unknown_actor_are_rejected(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    async with committing_database.reads() as session:
        with pytest.raises(ReadOnlySessionError, match="Use `DbSession`"):
            await enqueue(session, broker.get_actor("note"), "path", "a")
    async with committing_database.transaction() as db:
        with pytest.raises(ActorNotFound):
            await enqueue_message(db, Message(queue, "unknown", (), {}, {}))
        assert (await db.scalars(select(OutboxMessage))).all() == []
