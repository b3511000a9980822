"""Redis as the broker: what dead workers leave is given back, and so is what a live one mislays."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from dramatiq import Message
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import ConnectionClosed
from redis import SSLConnection

from src.core import redis_url
from src.core.redis_url import RedisURL
from src.tasks.engine.brokers.base import BrokerUnavailableError, QueueState
from src.tasks.engine.brokers.redis import RedisTaskBroker, create_client
from tests.proxy import Relay
from tests.test_tasks.servers.redis import connect, serve
from tests.test_tasks.workers import eventually

QUEUE = "lamps"


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with serve() as url:
        yield url


Make = Callable[..., RedisTaskBroker]


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    """Make brokers of the same queue, each as if in a process of its own."""
    namespace = uuid4().hex
    made: list[RedisTaskBroker] = []

    def make(via: RedisURL | None = None) -> RedisTaskBroker:
        broker = RedisTaskBroker(via or redis_url.parse(url), namespace=namespace, middleware=[])
        broker.declare_queue(QUEUE)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
async def line(url: str) -> AsyncGenerator[Relay]:
    relay = Relay(lambda: connect(url))
    await relay.start()
    yield relay
    await relay.stop()


def message(word: str = "a", **options: object) -> Message[None]:
    return Message(QUEUE, "act", (word,), {}, dict(options))


def age_heartbeat(broker: RedisTaskBroker, seconds: float) -> None:
    """Let the worker look as if it had been silent for so long."""
    then = current_millis() - int(seconds * 1000)
    broker.client.zadd(f"{broker.namespace}:__heartbeats__", {broker.broker_id: then})


def test_a_batch_is_published_in_order(make: Make) -> None:
    broker = make()
    broker.publish([message(str(number)) for number in range(100)])
    consumer = broker.consume(QUEUE, prefetch=100)

    taken = [next(consumer) for _ in range(100)]
    assert [each.args[0] for each in taken if each] == [str(number) for number in range(100)]


def test_what_a_dead_worker_had_is_given_back_and_marked(make: Make) -> None:
    """Once: whoever comes second finds nothing."""
    dead, alive, other = make(), make(), make()
    dead.publish([message("a"), message("b")])
    for _ in range(2):
        next(dead.consume(QUEUE, prefetch=1))
    age_heartbeat(dead, 5)
    alive.maintain()
    consumer = alive.consume(QUEUE, prefetch=9)
    assert next(consumer) is None
    age_heartbeat(dead, 16)
    alive.maintain()
    other.maintain()

    taken = [next(consumer), next(consumer)]
    assert sorted(each.args[0] for each in taken if each) == ["a", "b"]
    assert all(alive.is_redelivered(each) for each in taken if each)
    assert next(consumer) is None


def test_a_mark_is_not_passed_on(make: Make) -> None:
    """The next attempt at the message has not been delivered before."""
    broker = make()
    broker.enqueue(message(redelivered=True))
    first = next(broker.consume(QUEUE))
    assert first
    assert broker.is_redelivered(first)
    broker.enqueue(first)  # type: ignore[arg-type]  # as Dramatiq does
    second = next(broker.consume(QUEUE))

    assert second
    assert not broker.is_redelivered(second)


def test_a_worker_that_was_frozen_does_not_bury_itself(make: Make) -> None:
    broker = make()
    broker.enqueue(message())
    consumer = broker.consume(QUEUE)
    taken = next(consumer)
    assert taken
    age_heartbeat(broker, 60)
    broker.maintain()

    assert next(make().consume(QUEUE)) is None
    consumer.ack(taken)
    assert broker.queue_state(QUEUE) == QueueState(0, 0, 0, 0.0)


def test_what_a_live_worker_has_mislaid_is_given_back(make: Make) -> None:
    """Such as an answer of the server that got lost; what is in hand stays there."""
    broker = make()
    broker.publish([message("mislaid"), message("in hand")])
    broker.do_fetch(QUEUE, 1)
    consumer = broker.consume(QUEUE, prefetch=1)
    held = next(consumer)
    assert held
    assert held.args == ("in hand",)
    other = make().consume(QUEUE)
    broker.maintain()
    assert next(other) is None  # it may be on its way
    broker.maintain()

    found = next(other)
    assert found
    assert found.args == ("mislaid",)
    broker.maintain()
    broker.maintain()
    assert next(other) is None


def test_what_was_due_later_outlives_a_broken_connection(make: Make) -> None:
    """Dramatiq forgets it then, and it would wait for the end of the worker."""
    broker = make()
    broker.enqueue(message(), delay=60_000)
    first = broker.consume(dq_name(QUEUE), prefetch=9)
    assert next(first)
    second = broker.consume(dq_name(QUEUE), prefetch=9)
    assert next(second) is None
    broker.maintain()
    broker.maintain()

    assert next(second)


def test_closing_gives_back_what_was_not_handed_out(make: Make) -> None:
    broker = make()
    broker.publish([message(word) for word in "abc"])
    consumer = broker.consume(QUEUE, prefetch=9)
    taken = next(consumer)
    assert taken
    consumer.close()
    other = make().consume(QUEUE, prefetch=9)

    assert [each.args[0] for each in (next(other), next(other)) if each] == ["b", "c"]
    assert next(other) is None


async def test_a_closed_broker_holds_no_connection(make: Make) -> None:
    broker, other = make(), make()
    number = broker.client.client_id()
    broker.close()

    def is_gone() -> bool:
        return number not in {int(client["id"]) for client in other.client.client_list()}

    await eventually(is_gone, "the end of the connection")


async def test_dramatiq_hears_of_every_fault(make: Make, line: Relay) -> None:
    """Of a server that hangs too: it knows one error of redis-py only, and gives up on others."""
    broker = make(redis_url.parse(f"redis://127.0.0.1:{line.port}"))
    await asyncio.to_thread(broker.enqueue, message())
    consumer = broker.consume(QUEUE, prefetch=9)
    taken = await asyncio.to_thread(next, consumer)
    assert taken
    await line.stop()
    for act in (
        lambda: next(consumer),
        lambda: consumer.ack(taken),
        lambda: consumer.nack(taken),
        lambda: consumer.requeue([taken]),
        lambda: broker.enqueue(message()),
    ):
        with pytest.raises(ConnectionClosed):
            await asyncio.to_thread(act)
    for ask in (
        broker.ping,
        broker.maintain,
        lambda: broker.queue_state(QUEUE),
        broker.warn_if_unsafe,
    ):
        with pytest.raises(BrokerUnavailableError, match="Redis cannot be used"):
            await asyncio.to_thread(ask)
    await line.start()
    await asyncio.to_thread(consumer.ack, taken)
    state = await asyncio.to_thread(broker.queue_state, QUEUE)
    assert state.waiting == 0


def test_state_of_a_queue(make: Make) -> None:
    broker = make()
    assert broker.queue_state(QUEUE) == QueueState(0, 0, 0, 0.0)
    now = current_millis()
    broker.publish([Message(QUEUE, "act", (), {}, {}, message_timestamp=now - 5000), message()])
    broker.enqueue(message(), delay=60_000)

    state = broker.queue_state(QUEUE)
    assert (state.waiting, state.delayed, state.dead) == (2, 1, 0)
    assert state.oldest_seconds is not None
    assert 5 <= state.oldest_seconds < 300  # and no milliseconds


def test_dead_letters_that_are_too_old_are_forgotten(make: Make) -> None:
    broker = make()
    broker.publish([message("old"), message("new")])
    consumer = broker.consume(QUEUE, prefetch=9)
    keys = []
    for _ in range(2):
        taken = next(consumer)
        assert taken
        keys.append(taken.options["redis_message_id"])
        consumer.nack(taken)
    old = keys[0]  # both may have died in the same millisecond
    broker.client.zadd(
        f"{broker.namespace}:{QUEUE}.XQ", {old: current_millis() - broker.dead_message_ttl - 1}
    )
    broker.maintain()

    assert [letter.message.args for letter in broker.dead_letters(QUEUE, limit=9)] == [("new",)]
    assert broker.client.hlen(f"{broker.namespace}:{QUEUE}.XQ.msgs") == 1


def test_a_dead_letter_that_cannot_be_read_is_shown_and_purged(make: Make) -> None:
    broker = make()
    key = f"{broker.namespace}:{QUEUE}.XQ"
    broker.client.zadd(key, {"strange": current_millis()})
    broker.client.hset(f"{key}.msgs", "strange", b"no message")

    (letter,) = broker.dead_letters(QUEUE, limit=9)
    assert (letter.id, letter.message.actor_name) == ("strange", "?")
    assert broker.purge_dead(QUEUE, ["strange"]) == 1


def test_a_requeued_dead_letter_is_as_it_was_but_young(make: Make) -> None:
    broker = make()
    broker.publish([Message(QUEUE, "act", (), {}, {"retries": 3}, message_timestamp=1)])
    consumer = broker.consume(QUEUE)
    taken = next(consumer)
    assert taken
    consumer.nack(taken)
    assert broker.requeue_dead(QUEUE) == 1

    again = next(consumer)
    assert again
    assert "retries" not in again.options
    assert again.message_timestamp > current_millis() - 60_000
    assert again.message_id == taken.message_id


def test_a_server_that_may_evict_is_warned_of(
    make: Make, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = make()
    broker.warn_if_unsafe()
    caplog.clear()
    capsys.readouterr()
    try:
        broker.client.config_set("maxmemory", "1gb")
        broker.client.config_set("maxmemory-policy", "allkeys-lru")
        with caplog.at_level(logging.WARNING):
            broker.warn_if_unsafe()
    finally:
        broker.client.config_set("maxmemory", "0")
        broker.client.config_set("maxmemory-policy", "noeviction")

    assert "queue_may_be_evicted" in caplog.text + capsys.readouterr().out


def test_clients_of_each_kind() -> None:
    socket = create_client(redis_url.parse("unix:///run/redis?db=2"))
    tls = create_client(redis_url.parse("rediss://me:secret@queue:1/3"))
    sentinel = create_client(redis_url.parse("redis+sentinel://a,b:1/main"))

    assert socket.connection_pool.connection_kwargs["path"] == "/run/redis"
    assert tls.connection_pool.connection_kwargs["host"] == "queue"
    assert tls.connection_pool.connection_kwargs["password"] == "secret"
    assert sentinel.connection_pool.service_name == "main"  # type: ignore[attr-defined]  # of Sentinel's
    with pytest.raises(ValueError, match="cannot be in a Redis Cluster"):
        create_client(redis_url.parse("redis+cluster://a"))


def test_sentinels_are_spoken_to_as_the_server_is() -> None:
    """Over TLS, and without its password."""
    client = create_client(redis_url.parse("rediss+sentinel://:secret@one,two/main/3"))
    pool: Any = client.connection_pool
    server, sentinels = pool.connection_kwargs, pool.sentinel_manager.sentinels

    assert (server["db"], server["password"]) == (3, "secret")
    for sentinel in sentinels:
        assert sentinel.connection_pool.connection_class is SSLConnection
        assert sentinel.connection_pool.connection_kwargs["socket_timeout"] == 5
        assert sentinel.connection_pool.connection_kwargs.get("password") is None
