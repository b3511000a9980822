"""What every broker promises."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, Middleware
from dramatiq.broker import Broker
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Retries

from src.tasks.engine.brokers.base import ERROR, BrokerUnavailableError, TaskBroker
from tests.proxy import Relay
from tests.test_tasks.conftest import Server
from tests.test_tasks.test_brokers.conftest import Make
from tests.test_tasks.test_brokers.messages import (
    consuming,
    kill,
    message_to,
    numbers,
    take,
    wait_for,
    wait_until,
    working,
)


class Announced(Middleware):
    """Notes which messages were to be sent, and which were."""

    def __init__(self) -> None:
        self.before: list[str] = []
        self.after: list[str] = []

    def before_enqueue(self, _: Broker, message: Message[Any], delay: int | None) -> None:
        assert delay is None
        self.before.append(message.message_id)

    def after_enqueue(self, _: Broker, message: Message[Any], delay: int | None) -> None:
        assert delay is None
        self.after.append(message.message_id)


# --- publishing -------------------------------------------------------------------------------


async def test_batches_are_published_in_order(broker: TaskBroker, queue: str) -> None:
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue, i) for i in range(500)])
        await publisher.publish([message_to(queue, i) for i in range(500, 700)])
    with consuming(broker, queue) as consumer:
        assert [take(consumer).args[0] for _ in range(700)] == list(range(700))


async def test_published_messages_are_on_their_queues_on_return(make: Make, queue: str) -> None:
    announced = Announced()
    broker, other = make(announced), f"{queue}-other"
    messages = [message_to(queue), message_to(other), message_to(queue)]
    async with broker.open_publisher() as publisher:
        await publisher.publish(messages)
        assert broker.queue_state(queue).waiting == 2
        assert broker.queue_state(other).waiting == 1
    ids = [message.message_id for message in messages]
    assert announced.before == ids
    assert sorted(announced.after) == sorted(ids)


async def test_large_messages_are_published(broker: TaskBroker, queue: str) -> None:
    text = "x" * 300_000
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue, text) for _ in range(5)])
    with consuming(broker, queue) as consumer:
        assert all(take(consumer).args == (text,) for _ in range(5))


async def test_publisher_survives_a_lost_connection(
    distant: TaskBroker, broker: TaskBroker, server: Server, proxy: Relay, queue: str
) -> None:
    async with distant.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        await proxy.stop()
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError, match=r"^\w+ cannot be used: ") as caught:
                await publisher.publish([message_to(queue)])
            assert server.module.PASSWORD not in str(caught.value)
        await publisher.publish([])  # needs no server
        await proxy.start()
        await publisher.publish([message_to(queue)])
    assert broker.queue_state(queue).waiting == 2


# --- the server is away -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
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
    distant: TaskBroker,
    server: Server,
    proxy: Relay,
    queue: str,
    ask: Callable[[TaskBroker, str], object],
) -> None:
    await asyncio.to_thread(ask, distant, queue)
    await proxy.stop()
    with pytest.raises(BrokerUnavailableError, match=r"^\w+ cannot be used: ") as caught:
        await asyncio.to_thread(ask, distant, queue)
    assert server.module.PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_dramatiq_retries_after_an_outage(
    distant: TaskBroker, broker: TaskBroker, proxy: Relay, queue: str
) -> None:
    """It knows one class of errors for that."""
    await asyncio.to_thread(distant.enqueue, message_to(queue))
    await proxy.stop()
    for act in (
        lambda: distant.enqueue(message_to(queue)),
        lambda: next(distant.consume(queue)),
    ):
        with pytest.raises(BrokerConnectionError):
            await asyncio.to_thread(act)
    await proxy.start()
    await asyncio.to_thread(distant.enqueue, message_to(queue))
    assert broker.queue_state(queue).waiting == 2


async def test_worker_survives_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch, distant: TaskBroker, proxy: Relay, queue: str
) -> None:
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.1)
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.1)
    done = set[int]()

    @dramatiq.actor(broker=distant, queue_name=queue, actor_name="act")
    def act(number: int) -> None:
        time.sleep(0.05)
        done.add(number)

    def interrupt() -> None:
        for change in (proxy.stop, proxy.start):
            asyncio.run_coroutine_threadsafe(change(), loop).result()

    def send_and_wait() -> None:
        with working(distant):
            for number in range(20):
                act.send(number)
                if number == 10:
                    interrupt()
            wait_until(lambda: done == set(range(20)))
            wait_for(distant, queue, waiting=0, delayed=0, dead=0)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(send_and_wait)


async def test_closing_does_not_need_the_server(
    distant: TaskBroker, proxy: Relay, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(distant.enqueue, message_to(queue))
    await proxy.stop()
    await asyncio.to_thread(distant.close)
    assert caplog.records == []


# --- consuming --------------------------------------------------------------------------------


def test_queue_state_counts(broker: TaskBroker, queue: str) -> None:
    def counts() -> tuple[int, int, int]:
        state = broker.queue_state(queue)
        return state.waiting, state.delayed, state.dead

    assert counts() == (0, 0, 0)  # there is no queue yet
    kill(broker, queue, 2)
    broker.enqueue(message_to(queue))
    for _ in range(3):
        broker.enqueue(message_to(queue), delay=60_000)
    assert counts() == (1, 3, 2)


def test_delayed_message_comes_later(broker: TaskBroker, queue: str) -> None:
    done: list[float] = []

    @dramatiq.actor(broker=broker, queue_name=queue, actor_name="act")
    def act() -> None:
        done.append(time.monotonic())

    with working(broker):
        started = time.monotonic()
        act.send_with_options(delay=500)
        wait_until(lambda: bool(done))
    assert done[0] - started >= 0.5
    wait_for(broker, queue, waiting=0, delayed=0, dead=0)


def test_failed_attempts_end_in_a_dead_letter(broker: TaskBroker, queue: str) -> None:
    attempts: list[int] = []
    broker.add_middleware(Retries(max_retries=2, min_backoff=10, max_backoff=20))

    @dramatiq.actor(broker=broker, queue_name=queue, actor_name="act")
    def act() -> None:
        attempts.append(1)
        raise ValueError("no such luck")

    with working(broker):
        sent = act.send()
        wait_for(broker, queue, dead=1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert len(attempts) == 3
    assert letter.id == sent.message_id
    assert "no such luck" in letter.message.options["traceback"]
    assert letter.died_at is not None


def test_message_to_an_unknown_actor_becomes_a_dead_letter(broker: TaskBroker, queue: str) -> None:
    broker.enqueue(message_to(queue, 1))
    with working(broker):
        wait_for(broker, queue, waiting=0, dead=1)
    assert numbers(broker, queue) == [1]


def test_body_that_is_no_message_becomes_a_dead_letter(
    broker: TaskBroker, server: Server, queue: str
) -> None:
    broker.enqueue(message_to(queue))
    server.module.put(broker, queue, b"\xff garbage")
    with working(broker):
        wait_for(broker, queue, waiting=0, dead=2)
    (letter,) = (
        each
        for each in broker.dead_letters(queue, limit=10)
        if "garbage" in each.message.options.get(ERROR, "")
    )
    assert letter.message.actor_name == "?"
    assert broker.requeue_dead(queue, [letter.id]) == 0
    assert broker.purge_dead(queue, [letter.id]) == 1


# --- dead letters -----------------------------------------------------------------------------


def test_dead_letter_shows_its_failure(broker: TaskBroker, queue: str) -> None:
    kill(broker, queue, 1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.message.options[ERROR] == "ValueError: no"
    assert letter.message.options["traceback"] == "Traceback ..."


def test_dead_letter_that_is_not_json_stays_as_it_came(broker: TaskBroker, queue: str) -> None:
    broker.enqueue(message_to(queue, 7))
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        message.options["what"] = object()
        consumer.nack(message)
    wait_for(broker, queue, waiting=0, dead=1)
    assert numbers(broker, queue) == [7]
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.died_at is not None


def test_newest_dead_letters_come_first_however_often_one_looks(
    broker: TaskBroker, queue: str
) -> None:
    kill(broker, queue, 60)
    for _ in range(3):
        assert numbers(broker, queue, limit=5) == [59, 58, 57, 56, 55]
    assert len(broker.dead_letters(queue, limit=1000)) == 60
    assert broker.queue_state(queue).dead == 60


def test_requeued_message_is_as_before_but_young(broker: TaskBroker, queue: str) -> None:
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
def test_only_the_named_dead_letters_are_changed(broker: TaskBroker, queue: str, act: str) -> None:
    kill(broker, queue, 5)
    ids = {each.message.args[0]: each.id for each in broker.dead_letters(queue, limit=9)}
    change = getattr(broker, act)
    assert change(queue, []) == 0
    assert change(queue, [ids[1], ids[3], "unknown"]) == 2
    assert numbers(broker, queue) == [4, 2, 0]
    assert broker.queue_state(queue).waiting == (2 if act == "requeue_dead" else 0)
    assert change(queue) == 3
    assert broker.queue_state(queue).dead == 0
