"""The behavior of every broker."""

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import BrokerConnectionError
from sqlalchemy import URL

from src.tasks.broker import create_broker
from src.tasks.engine.brokers.base import ERROR, BrokerUnavailableError, TaskBroker
from src.tasks.engine.middleware.retries import RetriesMiddleware
from tests.proxy import Proxy
from tests.test_tasks.conftest import Server
from tests.test_tasks.test_brokers.messages import (
    add_dead_letters,
    consuming,
    message_to,
    numbers,
    take,
    wait_for,
)
from tests.test_tasks.workers import Logs, events, eventually, settings_for, working

SENTENCE = r"^\w+ is unavailable: .*$"


async def test_publish_returns_once_messages_are_on_their_queues(
    broker: TaskBroker, queue: str
) -> None:
    other, text = f"{queue}-other", "x" * 300_000
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue, text), message_to(other), message_to(queue)])
        assert broker.queue_state(queue).waiting == 2
        assert broker.queue_state(other).waiting == 1
    with consuming(broker, queue) as consumer:
        assert take(consumer).args == (text,)


async def test_environments_share_nothing(server: Server, queue: str) -> None:
    """They may use one server, as two services may."""
    variables = server.variables(queue) | {"DRAMATIQ_NAMESPACE": ""}
    broker, other = [
        create_broker(settings_for(URL.create("postgresql"), variables | {"ENV": env}))
        for env in ("test", "development")
    ]
    done: list[str] = []
    for each, name in ((broker, "own"), (other, "other")):
        dramatiq.actor(broker=each, queue_name=queue, actor_name="act")(
            lambda number, name=name: done.append(f"{name} {number}")
        )
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue, 1)])
    broker.enqueue(message_to(queue, 2), delay=10)
    broker.add_dead_letter(queue, "dead", message_to(queue, 3).encode())
    for each in (other, broker):
        each.middleware = [RetriesMiddleware()]  # converts the time of a delayed message
    async with working(other), working(broker):
        await eventually(lambda: len(done) == 2, "both messages")

    assert set(done) == {"own 1", "own 2"}
    assert other.queue_state(queue).dead == len(other.dead_letters(queue, limit=9)) == 0
    assert other.requeue_dead(queue) + other.purge_dead(queue) == 0
    assert broker.purge_dead(queue) == 1
    for each in (other, broker):
        each.close()


# --- the server is unavailable ----------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda broker, _: broker.ping(),
        lambda broker, queue: broker.queue_state(queue),
        lambda broker, queue: broker.dead_letters(queue, limit=10),
        lambda broker, queue: broker.requeue_dead(queue),
        lambda broker, queue: broker.purge_dead(queue),
    ],
    ids=["ping", "queue_state", "dead_letters", "requeue_dead", "purge_dead"],
)
async def test_outage_is_reported(
    broker_behind_proxy: TaskBroker,
    server: Server,
    broker_proxy: Proxy,
    queue: str,
    call: Callable[[TaskBroker, str], object],
) -> None:
    await asyncio.to_thread(call, broker_behind_proxy, queue)
    await broker_proxy.stop()
    with pytest.raises(BrokerUnavailableError, match=SENTENCE) as caught:
        await asyncio.to_thread(call, broker_behind_proxy, queue)
    assert server.module.PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_after_an_outage_messages_are_sent_again(
    broker_behind_proxy: TaskBroker,
    broker: TaskBroker,
    server: Server,
    broker_proxy: Proxy,
    queue: str,
) -> None:
    """Dramatiq retries only after a BrokerConnectionError."""
    async with broker_behind_proxy.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        await asyncio.to_thread(broker_behind_proxy.enqueue, message_to(queue))
        await broker_proxy.stop()
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError, match=SENTENCE) as caught:
                await publisher.publish([message_to(queue)])
            assert server.module.PASSWORD not in str(caught.value)
        for act in (
            lambda: broker_behind_proxy.enqueue(message_to(queue)),
            lambda: next(broker_behind_proxy.consume(queue)),
        ):
            with pytest.raises(BrokerConnectionError):
                await asyncio.to_thread(act)
        await broker_proxy.start()
        await publisher.publish([message_to(queue)])
        await asyncio.to_thread(broker_behind_proxy.enqueue, message_to(queue))
    assert broker.queue_state(queue).waiting == 4


async def test_worker_survives_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch,
    broker_behind_proxy: TaskBroker,
    broker_proxy: Proxy,
    queue: str,
) -> None:
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.1)
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.1)
    done = set[int]()

    @dramatiq.actor(broker=broker_behind_proxy, queue_name=queue, actor_name="act")
    def act(number: int) -> None:
        time.sleep(0.05)
        done.add(number)

    async with working(broker_behind_proxy):
        for number in range(20):
            await asyncio.to_thread(act.send, number)
            if number == 10:
                await broker_proxy.stop()
                await broker_proxy.start()
        await eventually(lambda: done == set(range(20)), "all messages")
        await asyncio.to_thread(wait_for, broker_behind_proxy, queue, waiting=0, delayed=0, dead=0)


async def test_closing_does_not_need_the_server(
    broker_behind_proxy: TaskBroker,
    broker_proxy: Proxy,
    queue: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await asyncio.to_thread(broker_behind_proxy.enqueue, message_to(queue))
    await broker_proxy.stop()
    await asyncio.to_thread(broker_behind_proxy.close)
    assert caplog.records == []


# --- dead letters -----------------------------------------------------------------------------


VALID: dict[str, Any] = message_to("default").asdict() | {"args": ["from elsewhere"]}
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"args": "abc"}, "Its args is missing or invalid."),
    ({"kwargs": []}, "Its kwargs is missing or invalid."),
    ({"options": None}, "Its options is missing or invalid."),
    ({"actor_name": ["act"]}, "Its actor_name is missing or invalid."),
    ({"actor_name": "\ud800\n"}, "Its actor_name is missing or invalid."),
    ({"message_id": 7}, "Its message_id is missing or invalid."),
    ({"message_timestamp": "now"}, "Its message_timestamp is missing or invalid."),
    ({"message_timestamp": 10**400}, "Its message_timestamp is invalid."),
    ({"options": {"time_limit": "x"}}, "Its option time_limit is invalid."),
    ({"options": {"retries": []}}, "Its option retries is invalid."),
    ({"options": {"eta": math.nan}}, "Its option eta is invalid."),
    ({"options": {"died_at": 1e300}}, "Its option died_at is invalid."),
    ({"options": {"throws": "ValueError"}}, "Its option throws is invalid"),
    ({"from_a_newer_release": 1}, "unexpected keyword argument 'from_a_newer_release'"),
]
REJECTED: list[tuple[bytes, str]] = [
    (b"\xff garbage", "It is not JSON: 'utf-8' codec"),
    (b"", "It is not JSON: Expecting value"),
    (b"[" * 100_000, "It is not JSON: maximum recursion depth"),
    (b"null", "It is not a JSON object."),
    (b"[1, 2]", "It is not a JSON object."),
    (b'{"task": "act", "id": "1", "args": []}', "Its queue_name is missing or invalid."),
    *((json.dumps(VALID | change).encode(), cause) for change, cause in CHANGES),
]


@pytest.mark.parametrize("name_of", [str, dq_name], ids=["queue", "delayed queue"])
async def test_entry_that_is_not_a_message_becomes_a_dead_letter(
    broker: TaskBroker, server: Server, queue: str, name_of: Callable[[str], str], logs: Logs
) -> None:
    """The others run in their order. The dead letters have the cause, and can only be purged."""
    done: list[object] = []
    dramatiq.actor(broker=broker, queue_name=queue, actor_name="act")(done.append)
    for number, (body, _) in enumerate(REJECTED):
        broker.enqueue(message_to(queue, number))
        server.module.put_raw(broker, name_of(queue), body)
    server.module.put_raw(broker, name_of(queue), json.dumps(VALID).encode())
    async with working(broker, threads=1):
        await asyncio.to_thread(wait_for, broker, queue, waiting=0, delayed=0, dead=len(REJECTED))

    assert [each for each in done if each != "from elsewhere"] == [*range(len(REJECTED))]
    assert done.count("from elsewhere") == 1
    assert len(events(logs, "message_rejected")) == len(REJECTED)
    assert not any("Consumer encountered" in str(entry["event"]) for entry in logs)
    letters = broker.dead_letters(queue, limit=100)
    errors = [str(letter.message.options[ERROR]) for letter in letters]
    for body, cause in REJECTED:
        assert any(cause in error and repr(body[:200]) in error for error in errors), cause
    assert broker.requeue_dead(queue) == 0
    assert broker.purge_dead(queue, [letters[0].id]) == 1
    assert broker.purge_dead(queue) == len(REJECTED) - 1


def test_body_that_cannot_be_decoded_is_stored_as_a_dead_letter(
    broker: TaskBroker, queue: str
) -> None:
    """Twice, if the relay dies in between, but with the same id."""
    for _ in range(2):
        broker.add_dead_letter(queue, "one", b"garbage")
    wait_for(broker, queue, waiting=0)
    assert len({letter.id for letter in broker.dead_letters(queue, limit=9)}) == 1


def test_newest_dead_letters_come_first_each_time(broker: TaskBroker, queue: str) -> None:
    add_dead_letters(broker, queue, 60)
    for _ in range(3):
        assert numbers(broker, queue, limit=5) == [59, 58, 57, 56, 55]
    assert len(broker.dead_letters(queue, limit=1000)) == 60
    wait_for(broker, queue, dead=60)  # the broker counts them again after they were read


def test_requeued_message_has_a_new_timestamp_and_no_failure_options(
    broker: TaskBroker, queue: str
) -> None:
    sent = message_to(queue, 1, retries=3).asdict() | {"message_timestamp": 1}
    broker.enqueue(Message(**sent), delay=60_000)
    with consuming(broker, dq_name(queue)) as consumer:
        consumer.nack(take(consumer))
    wait_for(broker, queue, delayed=0, dead=1)
    assert broker.requeue_dead(queue) == 1
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        assert (message.message_id, message.args) == (sent["message_id"], (1,))
        assert message.queue_name == queue
        assert "retries" not in message.options
        assert message.message_timestamp > current_millis() - 600_000
        assert not broker.is_redelivered(message)


@pytest.mark.parametrize("act", ["requeue_dead", "purge_dead"])
def test_only_the_selected_dead_letters_are_changed(
    broker: TaskBroker, queue: str, act: str
) -> None:
    add_dead_letters(broker, queue, 5)
    ids = {each.message.args[0]: each.id for each in broker.dead_letters(queue, limit=9)}
    change = getattr(broker, act)
    assert change(queue, []) == 0
    assert change(queue, [ids[1], ids[3], "unknown"]) == 2
    assert numbers(broker, queue) == [4, 2, 0]
    assert broker.queue_state(queue).waiting == (2 if act == "requeue_dead" else 0)
    assert change(queue) == 3
    assert broker.queue_state(queue).dead == 0
