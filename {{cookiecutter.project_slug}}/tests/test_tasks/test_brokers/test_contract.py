"""The behavior of every broker."""

import asyncio
import time
from collections.abc import Callable

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import BrokerConnectionError

from src.tasks.engine.brokers.base import ERROR, BrokerUnavailableError, TaskBroker
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
from tests.test_tasks.workers import eventually, working

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


async def test_message_without_an_actor_becomes_a_dead_letter(
    broker: TaskBroker, server: Server, queue: str
) -> None:
    """Either the actor is unknown, or the body cannot be decoded."""
    broker.enqueue(message_to(queue))
    server.module.put_raw(broker, queue, b"\xff garbage")
    async with working(broker):
        wait_for(broker, queue, waiting=0, dead=2)
    letters = {each.message.actor_name: each for each in broker.dead_letters(queue, limit=10)}
    assert letters.keys() == {"act", "?"}
    assert "garbage" in letters["?"].message.options[ERROR]
    assert broker.requeue_dead(queue, [letters["?"].id]) == 0
    assert broker.purge_dead(queue, [letters["?"].id]) == 1


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
