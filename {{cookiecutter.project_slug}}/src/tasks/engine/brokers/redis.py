"""Redis or Valkey as the broker.

Dramatiq keeps the ids of a queue in a list, `dramatiq:default`, and its messages in a hash,
`dramatiq:default.msgs`; what a worker has taken and not yet finished is in a set of its own,
`dramatiq:__acks__.<worker>.default`. What is added here works on the same keys.
"""

# mypy: disallow-untyped-calls=False
# Dramatiq's own broker, which is extended here, has no annotations.

import asyncio
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import redis
import structlog
from dramatiq import DecodeError, Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker as DramatiqRedisBroker
from dramatiq.brokers.redis import _RedisConsumer
from dramatiq.common import current_millis, dq_name, q_name, xq_name
from dramatiq.errors import ConnectionClosed
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from src.core.redis_url import RedisURL
from src.tasks.engine.brokers.base import (
    UNREADABLE,
    BrokerUnavailableError,
    DeadLetter,
    Publisher,
    QueueState,
    TaskBroker,
    without_failure_metadata,
)

log = structlog.get_logger(__name__)

HEARTBEAT_TIMEOUT = 15_000  # milliseconds without a word from a worker until it counts as dead
IDLE_POLL = 200  # milliseconds between looks at an empty queue, at most
REDELIVERED = "redelivered"
_RETRIED = (redis.ConnectionError,)

_GIVE_BACK = """
if redis.call("srem", KEYS[1], ARGV[1]) == 0 or redis.call("hexists", KEYS[3], ARGV[1]) == 0 then
    return 0
end
redis.call("hset", KEYS[3], ARGV[1], ARGV[2])
redis.call("lpush", KEYS[2], ARGV[1])
return 1
"""
_BURY = """
if redis.call("srem", KEYS[1], ARGV[1]) == 0 then
    return
end
redis.call("hdel", KEYS[2], ARGV[1])
redis.call("zadd", KEYS[3], ARGV[3], ARGV[1])
redis.call("hset", KEYS[3] .. ".msgs", ARGV[1], ARGV[2])
"""
_REVIVE = """
if redis.call("zrem", KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call("hdel", KEYS[1] .. ".msgs", ARGV[1])
redis.call("hset", KEYS[2] .. ".msgs", ARGV[1], ARGV[2])
redis.call("rpush", KEYS[2], ARGV[1])
return 1
"""


def create_client(url: RedisURL) -> redis.Redis:
    """Make a blocking client, as Dramatiq wants it; it connects when it is first used.

    Raises ValueError for a Cluster: the keys of a queue lie on several of its nodes.
    """
    if url.kind == "cluster":
        raise ValueError("a task queue cannot be in a Redis Cluster")
    options: dict[str, Any] = {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "health_check_interval": 15,
        # Not after a time-out: who waits for a server that hangs shall know within 5 s.
        "retry": Retry(ExponentialWithJitterBackoff(base=0.01, cap=1), 3, _RETRIED),
    }
    if url.kind == "sentinel":
        sentinel = Sentinel(url.nodes, sentinel_kwargs={**options, **url.tls_options})
        return cast(redis.Redis, sentinel.master_for(url.service, **options, **url.options))
    return redis.Redis.from_url(url.server, **options)


@contextmanager
def _naming_faults() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise BrokerUnavailableError(f"Redis cannot be used: {error}") from error


@contextmanager
def _naming_faults_to_dramatiq() -> Iterator[None]:
    """Let Dramatiq try again: of redis-py's errors it knows but one, and a timeout is another."""
    try:
        yield
    except redis.RedisError as error:
        raise ConnectionClosed(error) from None


class RedisConsumer(_RedisConsumer):
    """Tells the broker what it has in hand: see RedisTaskBroker.maintain."""

    broker: "RedisTaskBroker"

    def __next__(self) -> MessageProxy | None:
        with _naming_faults_to_dramatiq():
            message: MessageProxy | None = super().__next__()
        if message is not None:
            self.broker.held[self.queue_name].add(_id(message))
        return message

    def ack(self, message: MessageProxy) -> None:
        with _naming_faults_to_dramatiq():
            super().ack(message)
        self.broker.held[self.queue_name].discard(_id(message))

    def nack(self, message: MessageProxy) -> None:
        """Bury the message as it is now, which tells of its end, and not as it came."""
        with _naming_faults_to_dramatiq():
            try:
                self.broker.bury(self.queue_name, message)
            except (TypeError, ValueError) as error:  # the task has put into it what is not JSON
                log.warning("dead_letter_without_traces", cause=str(error))
                super().nack(message)
        self.queued_message_ids.discard(message.message_id)
        self.broker.held[self.queue_name].discard(_id(message))

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        given = list(messages)
        with _naming_faults_to_dramatiq():
            super().requeue(given)
        self.broker.held[self.queue_name].difference_update(map(_id, given))

    def close(self) -> None:
        """Give back what was fetched and not yet handed out, too."""
        bodies, self.message_cache = self.message_cache, []
        for body in bodies:
            with suppress(DecodeError):
                self.requeue([MessageProxy(Message.decode(body))])


class RedisTaskBroker(TaskBroker, DramatiqRedisBroker):
    client: Any  # redis-py's types are those of both its kinds of client at once

    def __init__(self, url: RedisURL, *, namespace: str, middleware: list[Middleware]) -> None:
        super().__init__(
            client=create_client(url),
            namespace=namespace,
            middleware=middleware,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            # Dramatiq's own care for dead workers comes at random, minutes late on a quiet queue,
            # and does not mark what it gives back. `maintain` has taken over.
            maintenance_chance=0,
        )
        self._give_back = self.client.register_script(_GIVE_BACK)
        self._bury = self.client.register_script(_BURY)
        self._revive = self.client.register_script(_REVIVE)
        # By queue, the keys of the messages that this process works on, or keeps for later.
        self.held = defaultdict[str, set[str]](set)
        self._mislaid = set[tuple[str, bytes]]()

    def consume(
        self, queue_name: str, prefetch: int = 1, timeout: int = IDLE_POLL
    ) -> RedisConsumer:
        """Ask more often than Dramatiq does, which lets the first task of a quiet hour wait."""
        timeout = min(timeout, IDLE_POLL)
        if queue_name in self.delay_queues:
            self.held[queue_name].clear()  # a new consumer knows nothing of what is due later
        return RedisConsumer(self, queue_name, prefetch, timeout)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Raises ConnectionClosed."""
        with _naming_faults_to_dramatiq():
            return super().enqueue(message, delay=delay)

    def close(self) -> None:
        self.client.close()

    @asynccontextmanager
    async def open_publisher(self) -> AsyncGenerator[Publisher]:
        yield _Publisher(self)

    def publish(self, messages: Sequence[Message[Any]]) -> None:
        """Put the messages on their queues, all of them or none."""
        by_queue = defaultdict[str, list[Message[Any]]](list)
        for message in messages:
            named = message.copy(options={"redis_message_id": str(uuid4())})
            self.emit_before("enqueue", named, None)
            by_queue[message.queue_name].append(named)
        with _naming_faults():
            pipeline = self.client.pipeline()
            for queue_name, batch in by_queue.items():
                bodies = {_id(message): message.encode() for message in batch}
                pipeline.hset(self._messages(queue_name), mapping=bodies)
                pipeline.rpush(self._key(queue_name), *bodies)
            pipeline.execute()
        for batch in by_queue.values():
            for message in batch:
                self.emit_after("enqueue", message, None)

    def ping(self) -> None:
        with _naming_faults():
            self.client.ping()

    def warn_if_unsafe(self) -> None:
        """Warn of a server that may throw messages away."""
        with _naming_faults():
            memory = self.client.info("memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if memory.get("maxmemory") and policy != "noeviction":
            log.warning("queue_may_be_evicted", maxmemory_policy=policy, wanted="noeviction")

    def maintain(self) -> None:
        """Give back what dead workers had taken; forget dead letters that are too old.

        This one is alive, even if it has just been frozen, or has no room for more messages. But it
        may have lost some: those that the server sent as the connection broke, and, when that
        happens, those that were due later.
        """
        with _naming_faults():
            now = current_millis()
            last_seen = now - self.heartbeat_timeout
            self.client.zadd(self._key("__heartbeats__"), {self.broker_id: now})
            for worker in self.client.zrangebyscore(self._key("__heartbeats__"), 0, last_seen):
                self._clean_up_after(worker.decode())
            self._give_back_mislaid()
            for queue_name in self.queues:
                dead = self._key(xq_name(queue_name))
                old = self.client.zrangebyscore(dead, 0, now - self.dead_message_ttl)
                if old:
                    self._forget(dead, old)

    def _give_back_mislaid(self) -> None:
        """Give back what was not in hand at the last look either: then it is not on its way."""
        seen = {
            (name, key)
            for name in (*self.queues, *self.delay_queues)
            for key in self._taken(name)
            if key.decode() not in self.held[name]
        }
        mislaid = seen & self._mislaid
        for name, key in mislaid:
            self._give_one_back(self._acks(name), name, key)
        if mislaid:
            log.warning("messages_given_back", messages=len(mislaid))
        self._mislaid = seen - mislaid

    def _taken(self, queue_name: str) -> Collection[bytes]:
        acks = self._acks(queue_name)
        # To count is cheap. What comes and goes meanwhile is seen at the next look.
        if self.client.scard(acks) <= len(self.held[queue_name]):
            return ()
        taken: set[bytes] = self.client.smembers(acks)
        return taken

    def _clean_up_after(self, worker: str) -> None:
        prefix = self._key(f"__acks__.{worker}.")
        count = 0
        for key in list(self.client.scan_iter(match=f"{prefix}*", count=1000)):
            queue_name = key.decode().removeprefix(prefix)
            for message_id in self.client.smembers(key):
                count += self._give_one_back(key, queue_name, message_id)
        self.client.zrem(self._key("__heartbeats__"), worker)
        if count:
            log.warning("worker_died", worker=worker, messages=count)

    def _give_one_back(self, acks: bytes | str, queue_name: str, message_id: bytes) -> int:
        messages = self._messages(queue_name)
        body = self.client.hget(messages, message_id) or b""
        keys = [acks, self._key(queue_name), messages]
        given: int = self._give_back(keys=keys, args=[message_id, _marked(body)])
        return given

    def is_redelivered(self, message: MessageProxy) -> bool:
        return bool(message.options.pop(REDELIVERED, False))

    def queue_state(self, queue_name: str) -> QueueState:
        with _naming_faults():
            pipeline = self.client.pipeline(transaction=False)
            pipeline.hlen(self._messages(queue_name))
            pipeline.hlen(self._messages(dq_name(queue_name)))
            pipeline.zcard(self._key(xq_name(queue_name)))
            pipeline.lindex(self._key(queue_name), 0)
            waiting, delayed, dead, first = pipeline.execute()
            body = first and self.client.hget(self._messages(queue_name), first)
        return QueueState(waiting, delayed, dead, _age(body) if body else 0.0)

    def bury(self, queue_name: str, message: MessageProxy) -> None:
        keys = [
            self._acks(queue_name),
            self._messages(queue_name),
            self._key(xq_name(q_name(queue_name))),
        ]
        self._bury(keys=keys, args=[_id(message), message.encode(), current_millis()])

    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        with _naming_faults():
            found = self.client.zrevrange(
                self._key(xq_name(queue_name)), 0, limit - 1, withscores=True
            )
            bodies = self._dead_bodies(queue_name, [key for key, _ in found])
        return [
            DeadLetter(message.message_id, message, datetime.fromtimestamp(died / 1000, UTC))
            for (key, died) in found
            if (message := _read(bodies.get(key), queue_name, key))
        ]

    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        dead, queue = self._key(xq_name(queue_name)), self._key(queue_name)

        def revive(key: bytes, message: Message[Any]) -> int:
            if message.actor_name == UNREADABLE:
                return 0
            body = replace(without_failure_metadata(message), queue_name=queue_name).encode()
            given: int = self._revive(keys=[dead, queue], args=[key, body])
            return given

        return self._each_dead(queue_name, ids, revive)

    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        dead = self._key(xq_name(queue_name))
        return self._each_dead(queue_name, ids, lambda key, _: self._forget(dead, [key]))

    def _each_dead(
        self,
        queue_name: str,
        ids: Collection[str] | None,
        act: Callable[[bytes, Message[Any]], int],
    ) -> int:
        with _naming_faults():
            keys = self.client.zrange(self._key(xq_name(queue_name)), 0, -1)
            bodies = self._dead_bodies(queue_name, keys)
            return sum(
                act(key, message)
                for key in keys
                if (message := _read(bodies.get(key), queue_name, key))
                and (ids is None or message.message_id in ids)
            )

    def _dead_bodies(self, queue_name: str, keys: Sequence[bytes]) -> Mapping[bytes, bytes | None]:
        if not keys:
            return {}
        bodies = self.client.hmget(self._messages(xq_name(queue_name)), list(keys))
        return dict(zip(keys, bodies, strict=True))

    def _forget(self, dead: str, keys: Sequence[bytes]) -> int:
        pipeline = self.client.pipeline()
        pipeline.zrem(dead, *keys)
        pipeline.hdel(f"{dead}.msgs", *keys)
        count: int = pipeline.execute()[0]
        return count

    def _key(self, name: str) -> str:
        return f"{self.namespace}:{name}"

    def _acks(self, queue_name: str) -> str:
        return self._key(f"__acks__.{self.broker_id}.{queue_name}")

    def _messages(self, queue_name: str) -> str:
        return f"{self.namespace}:{queue_name}.msgs"


class _Publisher:
    def __init__(self, broker: RedisTaskBroker) -> None:
        self._broker = broker

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        await asyncio.to_thread(self._broker.publish, messages)


def _id(message: Message[Any] | MessageProxy) -> str:
    return str(message.options["redis_message_id"])


def _marked(body: bytes) -> bytes:
    """Note on a message that it was delivered before; leave alone what is none."""
    try:
        return Message.decode(body).copy(options={REDELIVERED: True}).encode()
    except DecodeError:
        return body


def _read(body: bytes | None, queue_name: str, key: bytes) -> Message[Any] | None:
    if body is None:  # it was requeued, or purged, as we looked
        return None
    try:
        return Message.decode(body)
    except DecodeError:
        return Message(queue_name, UNREADABLE, (), {}, {}, message_id=key.decode())


def _age(body: bytes) -> float | None:
    try:
        message = Message.decode(body)
    except DecodeError:
        return None
    since: int = message.options.get("requeue_timestamp", message.message_timestamp)
    return max(0.0, (current_millis() - since) / 1000)
