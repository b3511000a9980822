"""What is enqueued is sent if, and only if, the transaction commits."""

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from asgi_correlation_id import correlation_id
from dramatiq import ActorNotFound, Message
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.trace import traceparent
from src.db.models.task import OutboxMessage, Task
from src.db.session import Database, ReadOnlySessionError
from src.tasks import enqueue, enqueue_message
from src.tasks.engine import relay as relays
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.relay import Relay
from src.tasks.outbox import MAX_BYTES, enqueue_messages
from tests.fixtures.statements import recorded
from tests.test_tasks.workers import LIMIT, eventually, received, send, unsent

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def stored(db: AsyncSession) -> list[Message[Any]]:
    bodies = await db.scalars(select(OutboxMessage.body).order_by(OutboxMessage.id))
    return [Message.decode(body) for body in bodies]


@pytest.fixture
def _rare_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 2 * LIMIT)


@pytest.fixture
def _frequent_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.05)


@pytest.mark.usefixtures("_rare_polls", "relay")
async def test_messages_are_sent_when_the_transaction_commits(
    committing_database: Database, broker: TaskBroker
) -> None:
    """Long before the relay polls."""

    async def is_sent() -> bool:
        return not await unsent(committing_database)

    for word in "abcd":
        await send(committing_database, broker, "note", "path", word)
        await eventually(is_sent, "an empty outbox")

    assert [message.args[1] for message in await received(broker, 4)] == [*"abcd"]


@pytest.mark.usefixtures("relay")
async def test_messages_of_a_rollback_are_never_sent(
    committing_database: Database, broker: TaskBroker
) -> None:
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("tracked_note"), "path", "rolled back")
        await db.rollback()
    await send(committing_database, broker, "note", "path", "committed")

    (message,) = await received(broker)
    assert message.args == ("path", "committed")
    async with committing_database.reads() as session:
        assert (await session.scalars(select(Task))).all() == []


async def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(
    committing_database: Database, broker: TaskBroker, relay: Relay
) -> None:
    """And none is sent before the outer transaction commits."""
    note = broker.get_actor("note")
    async with committing_database.transaction() as db:
        async with db.begin_nested():
            await enqueue(db, note, "path", "released")
        savepoint = await db.begin_nested()
        await enqueue(db, note, "path", "rolled back")
        await savepoint.rollback()
        await enqueue(db, note, "path", "last")
        assert await relay.sweep() == 0

    messages = await received(broker, 2)
    assert [message.args[1] for message in messages] == ["released", "last"]


@pytest.mark.usefixtures("relay")
async def test_messages_of_a_transaction_keep_their_order(
    committing_database: Database, broker: TaskBroker
) -> None:
    """However they were enqueued, and over several batches of the relay."""
    note = broker.get_actor("note")
    async with committing_database.transaction() as db:
        for number in range(20):
            await enqueue(db, note, "path", str(number))
        many = [note.message("path", str(number)) for number in range(20, 1200)]
        ids = await enqueue_messages(db, many)

    messages = await received(broker, 1200)
    assert [message.args[1] for message in messages] == [str(number) for number in range(1200)]
    assert [message.message_id for message in messages][20:] == ids


@pytest.mark.usefixtures("_frequent_polls", "relay")
async def test_delayed_messages_wait_in_the_database(
    committing_database: Database, broker: TaskBroker
) -> None:
    note = broker.get_actor("note")
    started = time.time()
    async with committing_database.transaction() as db:
        await enqueue_message(db, note.message("path", "soon"), delay=timedelta(seconds=0.3))
        await enqueue_message(db, note.message("path", "next year"), delay=timedelta(days=400))
        await enqueue(db, note, "path", "now")

    messages = await received(broker, 2)
    due = {message.args[1]: message.message_timestamp for message in messages}
    assert due.keys() == {"now", "soon"}
    assert time.time() - started >= 0.3
    assert due["soon"] >= (started + 0.3) * 1000 - 1  # its age counts from then on
    assert await unsent(committing_database) == 1


async def test_a_tracked_message_has_the_id_of_its_task(
    committing_database: Database, broker: TaskBroker
) -> None:
    note, tracked = broker.get_actor("note"), broker.get_actor("tracked_note")
    async with committing_database.transaction() as db:
        ids = await enqueue_messages(
            db, [tracked.message("p", "a"), note.message("p", "b"), tracked.message("p", "c")]
        )
        tasks = (await db.scalars(select(Task).order_by(Task.id))).all()
        messages = await stored(db)

    assert [(message.message_id, message.args[1]) for message in messages] == [
        *zip(ids, "abc", strict=True)
    ]
    assert [(str(task.id), task.actor) for task in tasks] == [
        (ids[0], "tracked_note"),
        (ids[2], "tracked_note"),
    ]


async def test_a_message_carries_its_options_its_request_and_its_trace(
    committing_database: Database, broker: TaskBroker
) -> None:
    message = broker.get_actor("note").message_with_options(args=("p", "a"), max_retries=0)
    tokens = correlation_id.set("the request"), traceparent.set(TRACE)
    async with committing_database.transaction() as db:
        await enqueue_message(db, message)
        correlation_id.reset(tokens[0])
        traceparent.reset(tokens[1])
        await enqueue_message(db, message)
        messages = await stored(db)

    origin = {"request_id": "the request", "traceparent": TRACE}
    assert [each.options for each in messages] == [{"max_retries": 0, **origin}, {"max_retries": 0}]


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        ("x" * MAX_BYTES, ValueError, "put the data in a table, and send the key"),
        (uuid4(), TypeError, "UUID is not JSON serializable"),
    ],
    ids=["large", "not JSON"],
)
async def test_unfit_arguments_are_refused(
    committing_database: Database, broker: TaskBroker, argument: Any, error: type, words: str
) -> None:
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("note"), "path", "x" * (MAX_BYTES - 1000))
        with pytest.raises(error, match=words):
            await enqueue(db, broker.get_actor("note"), "path", argument)
        assert len(await stored(db)) == 1


async def test_a_read_only_session_and_an_unknown_actor_are_refused(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    async with committing_database.reads() as session:
        with pytest.raises(ReadOnlySessionError, match="take `DbSession`"):
            await enqueue(session, broker.get_actor("note"), "path", "a")
    async with committing_database.transaction() as db:
        with pytest.raises(ActorNotFound):
            await enqueue_message(db, Message(queue, "unknown", (), {}, {}))
        assert await stored(db) == []


@pytest.mark.parametrize(("actor", "inserts"), [("note", 1), ("tracked_note", 2)])
async def test_any_number_of_messages_is_one_statement_and_one_for_tasks(
    committing_database: Database, broker: TaskBroker, actor: str, inserts: int
) -> None:
    message = broker.get_actor(actor).message("path", "a")
    sent: dict[int, list[str]] = {}
    for number in (1, 1, 2, 50):
        with recorded(committing_database) as sent[number]:
            async with committing_database.transaction() as db:
                await enqueue_messages(db, [replace(message) for _ in range(number)])

    assert sent[1] == ["BEGIN", *["INSERT"] * inserts, "COMMIT"]
    assert sent[2] == sent[50]
