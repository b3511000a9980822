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
from tests.test_tasks.workers import LIMIT, eventually, received, unsent

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def kept(db: AsyncSession) -> list[Message[Any]]:
    """Return what the outbox holds."""
    bodies = await db.scalars(select(OutboxMessage.body).order_by(OutboxMessage.id))
    return [Message.decode(body) for body in bodies]


@pytest.fixture
def _rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 2 * LIMIT)


@pytest.fixture
def _frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.05)


@pytest.mark.usefixtures("_rare_looks", "relay")
async def test_what_is_committed_is_sent_at_once(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    """Long before the relay would look for it by itself."""
    for word in "abcd":
        async with committing_database.transaction() as db:
            await enqueue(db, broker.get_actor("note"), "path", word)
        await eventually(lambda: _is_sent(committing_database), "the message's departure")

    messages = await received(broker, queue, 4)
    assert [message.args for message in messages] == [("path", word) for word in "abcd"]


async def _is_sent(database: Database) -> bool:
    return not await unsent(database)


@pytest.mark.usefixtures("relay")
async def test_what_is_rolled_back_is_never_sent(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("tracked_note"), "path", "rolled back")
        await db.rollback()
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("note"), "path", "committed")

    (message,) = await received(broker, queue)
    assert message.args == ("path", "committed")
    async with committing_database.reads() as session:
        assert (await session.scalars(select(Task))).all() == []


async def test_a_savepoint_takes_its_messages_with_it(
    committing_database: Database, broker: TaskBroker, queue: str, relay: Relay
) -> None:
    """And none is sent before the transaction around it commits."""
    note = broker.get_actor("note")
    async with committing_database.transaction() as db:
        async with db.begin_nested() as kept_one:
            await enqueue(db, note, "path", "released")
        assert not kept_one.is_active
        undone = await db.begin_nested()
        await enqueue(db, note, "path", "undone")
        await undone.rollback()
        await enqueue(db, note, "path", "last")
        assert await relay.sweep() == 0

    messages = await received(broker, queue, 2)
    assert [message.args[1] for message in messages] == ["released", "last"]


@pytest.mark.usefixtures("relay")
async def test_messages_of_a_transaction_keep_their_order(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    """However they were enqueued, and more than one batch of the relay."""
    note = broker.get_actor("note")
    async with committing_database.transaction() as db:
        for number in range(20):
            await enqueue(db, note, "path", str(number))
        many = [note.message("path", str(number)) for number in range(20, 1200)]
        ids = await enqueue_messages(db, many)

    messages = await received(broker, queue, 1200)
    assert [message.args[1] for message in messages] == [str(number) for number in range(1200)]
    assert [message.message_id for message in messages][20:] == ids


@pytest.mark.usefixtures("_frequent_looks", "relay")
async def test_a_delay_is_kept_in_the_database(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    note = broker.get_actor("note")
    began = time.time()
    async with committing_database.transaction() as db:
        await enqueue_message(db, note.message("path", "soon"), delay=timedelta(seconds=0.3))
        await enqueue_message(db, note.message("path", "next year"), delay=timedelta(days=400))
        await enqueue(db, note, "path", "now")

    messages = await received(broker, queue, 2)
    due = {message.args[1]: message.message_timestamp for message in messages}
    assert due.keys() == {"now", "soon"}
    assert time.time() - began >= 0.3
    assert due["soon"] >= (began + 0.3) * 1000 - 1  # so that its age is none either
    assert await unsent(committing_database) == 1


async def test_a_tracked_message_has_the_id_of_its_task(
    committing_database: Database, broker: TaskBroker
) -> None:
    note, followed = broker.get_actor("note"), broker.get_actor("tracked_note")
    async with committing_database.transaction() as db:
        ids = await enqueue_messages(
            db, [followed.message("p", "a"), note.message("p", "b"), followed.message("p", "c")]
        )
        tasks = (await db.scalars(select(Task).order_by(Task.id))).all()
        messages = await kept(db)

    assert [message.message_id for message in messages] == ids
    assert [message.args[1] for message in messages] == ["a", "b", "c"]
    assert [str(task.id) for task in tasks] == [ids[0], ids[2]]
    assert {task.actor for task in tasks} == {"tracked_note"}


async def test_a_message_tells_where_it_comes_from(
    committing_database: Database, broker: TaskBroker
) -> None:
    tokens = correlation_id.set("the request"), traceparent.set(TRACE)
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("note"), "path", "a")
        correlation_id.reset(tokens[0])
        traceparent.reset(tokens[1])
        await enqueue(db, broker.get_actor("note"), "path", "b")
        messages = await kept(db)

    assert [message.options for message in messages] == [
        {"request_id": "the request", "traceparent": TRACE},
        {},
    ]


async def test_options_of_dramatiq_pass(committing_database: Database, broker: TaskBroker) -> None:
    wanted = broker.get_actor("note").message_with_options(args=("p", "a"), max_retries=0)
    async with committing_database.transaction() as db:
        await enqueue_message(db, wanted)
        (message,) = await kept(db)

    assert message.options == {"max_retries": 0}
    assert wanted.options == {"max_retries": 0}


async def test_large_arguments_are_refused(
    committing_database: Database, broker: TaskBroker
) -> None:
    async with committing_database.transaction() as db:
        await enqueue(db, broker.get_actor("note"), "path", "x" * (MAX_BYTES - 1000))
        with pytest.raises(ValueError, match="put the data in a table, and send the key"):
            await enqueue(db, broker.get_actor("note"), "path", "x" * MAX_BYTES)
        assert len(await kept(db)) == 1


async def test_arguments_must_be_json(committing_database: Database, broker: TaskBroker) -> None:
    with pytest.raises(TypeError, match="UUID is not JSON serializable"):
        async with committing_database.transaction() as db:
            await enqueue(db, broker.get_actor("note"), "path", uuid4())


async def test_a_session_that_reads_cannot_enqueue(
    committing_database: Database, broker: TaskBroker
) -> None:
    async with committing_database.reads() as session:
        with pytest.raises(ReadOnlySessionError, match="take `DbSession`"):
            await enqueue(session, broker.get_actor("note"), "path", "a")
        assert await kept(session) == []


async def test_an_actor_that_nobody_knows_is_refused(
    committing_database: Database, broker: TaskBroker, queue: str
) -> None:
    unknown: Message[None] = Message(queue, "nobody", (), {}, {})
    assert "nobody" not in broker.actors
    async with committing_database.transaction() as db:
        with pytest.raises(ActorNotFound):
            await enqueue_message(db, unknown)
        assert await kept(db) == []


@pytest.mark.parametrize(
    ("actor", "statements"),
    [("note", ["INSERT"]), ("tracked_note", ["INSERT", "INSERT"])],
)
async def test_to_enqueue_is_a_statement_for_the_message_and_one_for_its_task(
    committing_database: Database, broker: TaskBroker, actor: str, statements: list[str]
) -> None:
    """And no more for many messages than for two."""
    message = broker.get_actor(actor).message("path", "a")
    sent: dict[int, list[str]] = {}
    for number in (1, 1, 2, 50):
        with recorded(committing_database) as sent[number]:
            async with committing_database.transaction() as db:
                await enqueue_messages(db, [replace(message) for _ in range(number)])

    assert sent[1] == ["BEGIN", *statements, "COMMIT"]
    assert sent[2] == sent[50]
