"""Redis as the broker: what dead workers leave is redelivered, and a live one loses nothing."""

import pytest
import redis
from dramatiq import Message
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import BrokerConnectionError
from structlog.testing import capture_logs

from src.tasks.engine.brokers.base import QueueState
from src.tasks.engine.brokers.redis import RedisTaskBroker
from tests.test_tasks.test_brokers.conftest import Make
from tests.test_tasks.test_brokers.messages import consuming, kill, message_to, numbers, take

pytestmark = pytest.mark.parametrize("server", ["redis"], indirect=True)


def age_heartbeat(broker: RedisTaskBroker, seconds: float) -> None:
    """Let the worker look as if it had been silent for so long."""
    then = current_millis() - int(seconds * 1000)
    broker.client.zadd(f"{broker.namespace}:__heartbeats__", {broker.broker_id: then})


def test_messages_of_a_dead_worker_are_redelivered_once(make: Make, queue: str) -> None:
    dead, alive, other = make(), make(), make()
    for number in range(2):
        dead.enqueue(message_to(queue, number))
    for _ in range(2):
        next(dead.consume(queue, prefetch=1))
    age_heartbeat(dead, 5)
    alive.maintain()
    consumer = alive.consume(queue, prefetch=9)
    assert next(consumer) is None
    age_heartbeat(dead, 16)
    alive.maintain()
    other.maintain()

    taken = [take(consumer), take(consumer)]
    assert sorted(each.args[0] for each in taken) == [0, 1]
    assert all(alive.is_redelivered(each) for each in taken)
    assert next(consumer) is None


def test_next_attempt_is_no_redelivery(broker: RedisTaskBroker, queue: str) -> None:
    broker.enqueue(message_to(queue, redelivered=True))
    consumer = broker.consume(queue, prefetch=9)
    first = take(consumer)
    assert broker.is_redelivered(first)
    broker.enqueue(first)  # type: ignore[arg-type]  # as Dramatiq does
    assert not broker.is_redelivered(take(consumer))


def test_worker_that_was_frozen_keeps_its_messages(make: Make, queue: str) -> None:
    broker = make()
    broker.enqueue(message_to(queue))
    consumer = broker.consume(queue)
    taken = next(consumer)
    age_heartbeat(broker, 60)
    broker.maintain()

    assert next(make().consume(queue)) is None
    consumer.ack(taken)
    assert broker.queue_state(queue) == QueueState(0, 0, 0, 0.0)


def test_messages_of_a_lost_reply_are_requeued(
    make: Make, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has handed them over; those that the worker has got stay where they are."""
    broker = make()
    for word in ("in flight", "lost"):
        broker.enqueue(message_to(queue, word))
    consumer = broker.consume(queue, prefetch=1)
    taken = take(consumer)
    consumer.prefetch = 2
    fetch = broker.do_fetch

    def lose_reply(*arguments: object) -> None:
        fetch(*arguments)
        raise redis.TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(broker, "do_fetch", lose_reply, raising=False)
        with pytest.raises(BrokerConnectionError):
            next(consumer)
    again = broker.consume(queue, prefetch=2)

    assert take(again).args == ("lost",)
    assert next(again) is None
    assert taken.args == ("in flight",)


def test_delayed_messages_survive_a_lost_connection(broker: RedisTaskBroker, queue: str) -> None:
    """Dramatiq forgets them then, and consumes again."""
    broker.enqueue(message_to(queue), delay=60_000)
    assert next(broker.consume(dq_name(queue), prefetch=9))
    assert next(broker.consume(dq_name(queue), prefetch=9))


def test_closing_requeues_what_was_fetched_ahead(make: Make, queue: str) -> None:
    broker = make()
    for word in "abc":
        broker.enqueue(message_to(queue, word))
    with consuming(broker, queue) as consumer:
        take(consumer)
    other = make().consume(queue, prefetch=9)

    assert {take(other).args[0], take(other).args[0]} == {"b", "c"}
    assert next(other) is None


def test_age_of_the_first_message_is_told(broker: RedisTaskBroker, queue: str) -> None:
    sent = current_millis() - 5000
    broker.enqueue(Message(queue, "act", (), {}, {}, message_timestamp=sent))
    broker.enqueue(message_to(queue))

    age = broker.queue_state(queue).oldest_seconds
    assert age is not None
    assert 5 <= age < 300  # and no milliseconds


def test_dead_letters_that_are_too_old_are_deleted(broker: RedisTaskBroker, queue: str) -> None:
    kill(broker, queue, 2)
    dead = f"{broker.namespace}:{queue}.XQ"
    (oldest,) = broker.client.zrange(dead, 0, 0)
    broker.client.zadd(dead, {oldest: current_millis() - broker.dead_message_ttl - 1})
    broker.maintain()

    assert numbers(broker, queue) == [1]
    assert broker.client.hlen(f"{dead}.msgs") == 1


def test_server_that_may_evict_is_warned_of(broker: RedisTaskBroker) -> None:
    client = broker.client
    with capture_logs() as logs:
        broker.warn_if_unsafe()
        client.config_set("maxmemory", "1gb")
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            broker.warn_if_unsafe()
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")

    assert [log["event"] for log in logs] == ["broker_eviction_enabled"]
