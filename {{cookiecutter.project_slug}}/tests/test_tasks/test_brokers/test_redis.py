"""The Redis broker redelivers messages of dead workers, and live workers lose none."""

import asyncio
import time

import pytest
import redis
import structlog
from dramatiq import Message
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import BrokerConnectionError
from structlog.testing import capture_logs

from src.core.config import Settings
from src.doctor import CheckError
from src.tasks.doctor import check_broker
from src.tasks.engine.brokers import base
from src.tasks.engine.brokers.base import ERROR, QueueState
from src.tasks.engine.brokers.redis import RedisTaskBroker
from tests.test_tasks.test_brokers.conftest import MakeBroker
from tests.test_tasks.test_brokers.messages import (
    add_dead_letters,
    consuming,
    message_to,
    numbers,
    take,
    wait_for,
)
from tests.test_tasks.workers import working

pytestmark = pytest.mark.parametrize("server", ["redis"], indirect=True)


def set_clock(broker: RedisTaskBroker, hours: float) -> None:
    """Change the time of the worker's last heartbeat, as if its clock were wrong."""
    then = current_millis() + int(hours * 3_600_000)
    broker.client.zadd(f"{broker.namespace}:__heartbeats__", {broker.broker_id: then})


@pytest.mark.parametrize("hours", [-1, 1])
def test_messages_of_a_dead_worker_are_redelivered_once(
    make_broker: MakeBroker, queue: str, hours: int
) -> None:
    """Not those of a worker whose clock is wrong."""
    dead, alive, other = make_broker(), make_broker(), make_broker()
    for number in range(2):
        dead.enqueue(message_to(queue, number))
    for _ in range(2):
        next(dead.consume(queue, prefetch=1))
    alive.heartbeat_timeout = other.heartbeat_timeout = 1
    for ahead in (0, hours):
        set_clock(dead, ahead)
        alive.maintain()
    consumer = alive.consume(queue, prefetch=9)
    assert next(consumer) is None
    for _ in range(2):
        time.sleep(0.01)
        alive.maintain()
        other.maintain()

    taken = [take(consumer), take(consumer)]
    assert sorted(each.args[0] for each in taken) == [0, 1]
    assert all(alive.is_redelivered(each) for each in taken)
    assert next(consumer) is None


def test_next_attempt_is_not_a_redelivery(broker: RedisTaskBroker, queue: str) -> None:
    broker.enqueue(message_to(queue, redelivered=True))
    consumer = broker.consume(queue, prefetch=9)
    first = take(consumer)
    assert broker.is_redelivered(first)
    broker.enqueue(first)  # type: ignore[arg-type]  # as Dramatiq does
    assert not broker.is_redelivered(take(consumer))


def test_frozen_worker_keeps_its_messages(make_broker: MakeBroker, queue: str) -> None:
    broker = make_broker()
    broker.enqueue(message_to(queue))
    consumer = broker.consume(queue)
    taken = next(consumer)
    set_clock(broker, -1)
    broker.maintain()

    assert next(make_broker().consume(queue)) is None
    consumer.ack(taken)
    assert broker.queue_state(queue) == QueueState(0, 0, 0, 0.0)


def test_messages_of_a_lost_reply_are_requeued(
    make_broker: MakeBroker, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages that the worker received stay in flight."""
    broker = make_broker()
    for word in ("in flight", "lost"):
        broker.enqueue(message_to(queue, word))
    consumer = broker.consume(queue, prefetch=1)
    taken = take(consumer)
    consumer.prefetch = 2
    fetch = broker.fetch

    def lose_reply(*arguments: object) -> None:
        fetch(*arguments)
        raise redis.TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(broker, "fetch", lose_reply)
        with pytest.raises(BrokerConnectionError):
            next(consumer)
    again = broker.consume(queue, prefetch=2)

    assert take(again).args == ("lost",)
    assert next(again) is None
    assert taken.args == ("in flight",)


def test_delayed_messages_survive_a_lost_connection(broker: RedisTaskBroker, queue: str) -> None:
    """Dramatiq drops them from memory and fetches them again."""
    broker.enqueue(message_to(queue), delay=60_000)
    assert next(broker.consume(dq_name(queue), prefetch=9))
    assert next(broker.consume(dq_name(queue), prefetch=9))


def test_closing_requeues_messages_that_are_not_started(
    make_broker: MakeBroker, queue: str
) -> None:
    broker = make_broker()
    for word in "abc":
        broker.enqueue(message_to(queue, word))
    with consuming(broker, queue) as consumer:
        take(consumer)
    other = make_broker().consume(queue, prefetch=9)

    assert {take(other).args[0], take(other).args[0]} == {"b", "c"}
    assert next(other) is None


async def test_entry_without_a_body_or_with_a_binary_id_becomes_a_dead_letter(
    broker: RedisTaskBroker, queue: str
) -> None:
    name = f"{broker.namespace}:{queue}"
    broker.client.hset(f"{name}.msgs", b"\xff", message_to(queue).encode())
    broker.client.rpush(name, "without", b"\xff")
    broker.client.zadd(f"{name}.XQ", {"dead without": 1})
    async with working(broker):
        await asyncio.to_thread(wait_for, broker, queue, waiting=0, dead=3)

    errors = {
        each.id: str(each.message.options.get(ERROR))
        for each in broker.dead_letters(queue, limit=9)
    }
    assert all("not JSON" in errors[key] for key in ("without", "dead without"))
    assert broker.purge_dead(queue) == 3


def test_queue_state_has_the_age_of_the_oldest_message(broker: RedisTaskBroker, queue: str) -> None:
    sent = current_millis() - 5000
    broker.enqueue(Message(queue, "act", (), {}, {}, message_timestamp=sent))
    broker.enqueue(message_to(queue))

    age = broker.queue_state(queue).oldest_seconds
    assert age is not None
    assert 5 <= age < 300  # in seconds


def test_expired_dead_letters_are_deleted(broker: RedisTaskBroker, queue: str) -> None:
    add_dead_letters(broker, queue, 2)
    dead = f"{broker.namespace}:{queue}.XQ"
    (oldest,) = broker.client.zrange(dead, 0, 0)
    broker.client.zadd(dead, {oldest: current_millis() - broker.dead_message_ttl - 1})
    broker.maintain()

    assert numbers(broker, queue) == [1]
    assert broker.client.hlen(f"{dead}.msgs") == 1


async def test_server_that_may_evict_messages_causes_a_warning(
    broker: RedisTaskBroker, queue_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "log", structlog.get_logger())  # not bound by an earlier test
    client = broker.client
    with capture_logs() as logs:
        broker.warn_if_unsafe()
        client.config_set("maxmemory", "1gb")
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            broker.warn_if_unsafe()
            with pytest.raises(CheckError, match=r"allkeys-lru\. Set noeviction"):
                await check_broker(queue_settings)
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")

    assert [log["event"] for log in logs] == ["broker_eviction_enabled"]
