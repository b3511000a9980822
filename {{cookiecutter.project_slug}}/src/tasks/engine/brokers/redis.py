"""The Redis or Valkey broker.

Dramatiq stores the message ids of a queue in the list `dramatiq:default`, and the messages in the
hash `dramatiq:default.msgs`. The set `dramatiq:__acks__.<worker>.default` has the ids that a worker
has fetched and not finished. This module works on the same keys.
"""

# mypy: disallow-untyped-calls=False
# The base class, Dramatiq's broker, has no annotations.

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import redis
import structlog
from dramatiq import Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker as DramatiqRedisBroker
from dramatiq.brokers.redis import _RedisConsumer
from dramatiq.common import compute_backoff, current_millis, dq_name, q_name, xq_name
from redis.backoff import NoBackoff
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
    in_bursts,
    is_selected,
    read_entry,
    read_message,
    without_failure_metadata,
)
from src.tasks.engine.dramatiq_patches import connection_errors

log = structlog.get_logger(__name__)

HEARTBEAT_TIMEOUT = 15_000  # milliseconds without a heartbeat before a worker counts as dead
IDLE_POLL = 200  # maximum milliseconds between polls of an empty queue
REDELIVERED = "redelivered"

# Dramatiq's script returns no ids. The id in a body can be missing or wrong.
_FETCH = """
redis.call("zadd", KEYS[4], ARGV[2], ARGV[3])
local entries = {}
for number = 1, tonumber(ARGV[1]) do
    local id = redis.call("lpop", KEYS[1])
    if not id then
        break
    end
    redis.call("sadd", KEYS[2], id)
    entries[number] = {id, redis.call("hget", KEYS[3], id)}
end
return entries
"""
_REDELIVER = """
if redis.call("srem", KEYS[1], ARGV[1]) == 0 or redis.call("hexists", KEYS[3], ARGV[1]) == 0 then
    return 0
end
if ARGV[2] then
    redis.call("hset", KEYS[3], ARGV[1], ARGV[2])
end
redis.call("lpush", KEYS[2], ARGV[1])
return 1
"""
_MOVE_TO_DEAD = """
if redis.call("srem", KEYS[1], ARGV[1]) == 0 then
    return
end
redis.call("hdel", KEYS[2], ARGV[1])
redis.call("zadd", KEYS[3], ARGV[3], ARGV[1])
redis.call("hset", KEYS[3] .. ".msgs", ARGV[1], ARGV[2])
"""
_REQUEUE_DEAD = """
if redis.call("zrem", KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call("hdel", KEYS[1] .. ".msgs", ARGV[1])
redis.call("hset", KEYS[2] .. ".msgs", ARGV[1], ARGV[2])
redis.call("rpush", KEYS[2], ARGV[1])
return 1
"""


def create_client(url: RedisURL) -> redis.Redis:
    """Create the blocking client that Dramatiq needs. It connects on first use.

    The settings refuse a Redis Cluster, because the keys of a queue would be on several nodes.
    """
    options: dict[str, Any] = {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "health_check_interval": 15,
        # The callers retry. If the client repeated a fetch whose reply was lost, the messages of the
        # first fetch would be lost.
        "retry": Retry(NoBackoff(), 0),
    }
    if url.kind == "sentinel":
        sentinel = Sentinel(url.nodes, sentinel_kwargs={**options, **url.tls_options})
        return cast(redis.Redis, sentinel.master_for(url.service, **options, **url.options))
    return redis.Redis.from_url(url.server, **options)


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise BrokerUnavailableError(f"Redis is unavailable: {error}") from error


class RedisConsumer(_RedisConsumer):
    broker: "RedisTaskBroker"

    def __next__(self) -> MessageProxy | None:
        """Return the next message, or None after a pause. Entries without one are set aside."""
        room = self.prefetch - self.outstanding_message_count
        with connection_errors(redis.RedisError):
            if not self.message_cache and room > 0:
                self.message_cache = self.broker.fetch(self.queue_name, room)
            if not self.message_cache:
                self.misses, pause = compute_backoff(self.misses, max_backoff=self.timeout)
                time.sleep(pause / 1000)
                return None
            self.misses = 0
            key, body = self.message_cache.pop(0)
            redis_id = key.decode(errors="replace")
            is_text = redis_id.encode() == key  # JSON has no bytes
            message = read_entry(body or b"", self.queue_name) if is_text else None
            if message is None:
                self.broker.set_aside(self.queue_name, key, body)
                return None
        message.options["redis_message_id"] = redis_id
        self.queued_message_ids.add(message.message_id)
        self.broker.in_flight[self.queue_name].add(redis_id)
        return MessageProxy(message)

    def ack(self, message: MessageProxy) -> None:
        with connection_errors(redis.RedisError):
            super().ack(message)
        self.broker.in_flight[self.queue_name].discard(_redis_id(message))

    def nack(self, message: MessageProxy) -> None:
        """Write the dead letter with the current options, which include the error."""
        with connection_errors(redis.RedisError):
            try:
                self.broker.move_to_dead_letters(self.queue_name, message)
            except (TypeError, ValueError) as error:  # the options are not JSON
                log.warning("dead_letter_without_metadata", cause=str(error))
                super().nack(message)
        self.queued_message_ids.discard(message.message_id)
        self.broker.in_flight[self.queue_name].discard(_redis_id(message))

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        returned = list(messages)
        with connection_errors(redis.RedisError):
            super().requeue(returned)
        self.broker.in_flight[self.queue_name].difference_update(map(_redis_id, returned))

    def close(self) -> None:
        """Requeue the messages that no thread has started. Dramatiq 2.2 leaves it to maintenance."""
        self.broker.requeue_orphaned(self.queue_name)


class RedisTaskBroker(TaskBroker, DramatiqRedisBroker):
    client: Any  # redis-py shares its types between blocking and asynchronous clients

    def __init__(self, url: RedisURL, *, namespace: str, middleware: list[Middleware]) -> None:
        super().__init__(
            client=create_client(url),
            namespace=namespace,
            middleware=middleware,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            # Dramatiq runs its maintenance at random, minutes late on a quiet queue, and does not
            # mark the messages that it requeues. `maintain` replaces it.
            maintenance_chance=0,
        )
        self._fetch = self.client.register_script(_FETCH)
        self._redeliver = self.client.register_script(_REDELIVER)
        self._move_to_dead = self.client.register_script(_MOVE_TO_DEAD)
        self._requeue_dead = self.client.register_script(_REQUEUE_DEAD)
        # By worker and heartbeat, when this process first saw it. Clocks of workers may differ.
        self._seen_at: dict[tuple[bytes, float], float] = {}
        # By queue, the ids of the messages that this process runs, or keeps until they are due.
        self.in_flight = defaultdict[str, set[str]](set)

    def consume(
        self, queue_name: str, prefetch: int = 1, timeout: int = IDLE_POLL
    ) -> RedisConsumer:
        """Requeue messages that a failed connection has lost, and poll more often than Dramatiq.

        Dramatiq creates a new consumer after each failure of the connection. The server may have
        delivered messages that did not arrive, and Dramatiq has dropped its delayed messages.
        """
        if queue_name in self.delay_queues:
            self.in_flight[queue_name].clear()
        if count := self.requeue_orphaned(queue_name):
            log.warning("orphaned_messages_requeued", queue=queue_name, messages=count)
        return RedisConsumer(self, queue_name, prefetch, min(timeout, IDLE_POLL))

    def requeue_orphaned(self, queue_name: str) -> int:
        """Requeue messages that were delivered to this process but are not in flight in it.

        Call it only from the thread that fetches messages.
        """
        with connection_errors(redis.RedisError):
            taken: set[bytes] = self.client.smembers(self._acks_key(queue_name))
            orphaned = taken - {key.encode() for key in self.in_flight[queue_name].copy()}
            if orphaned:
                self.do_requeue(queue_name, *orphaned)
            return len(orphaned)

    def fetch(self, queue_name: str, count: int) -> list[tuple[bytes, bytes | None]]:
        """Take entries from the queue: their ids and bodies."""
        keys = [
            self._key(queue_name),
            self._acks_key(queue_name),
            self._messages_key(queue_name),
            self._key("__heartbeats__"),
        ]
        entries: list[tuple[bytes, bytes | None]] = self._fetch(
            keys=keys, args=[count, current_millis(), self.broker_id]
        )
        return entries

    def set_aside(self, queue_name: str, key: bytes, body: bytes | None) -> None:
        """Make an entry that is not a message a dead letter as it is."""
        if body is None:  # the server has lost it
            self.client.hset(self._messages_key(queue_name), key, b"")
        self.do_nack(queue_name, key)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        with connection_errors(redis.RedisError):
            return super().enqueue(message, delay=delay)

    def close(self) -> None:
        """Requeue the messages of tasks that were interrupted. This process is about to exit."""
        with suppress(redis.RedisError):  # another worker requeues them after heartbeat_timeout
            for queue_name, in_flight in list(self.in_flight.items()):
                acks, messages = self._acks_key(queue_name), self._messages_key(queue_name)
                for key in list(in_flight):
                    self._redeliver(keys=[acks, self._key(queue_name), messages], args=[key])
        self.client.close()

    @asynccontextmanager
    async def open_publisher(self) -> AsyncGenerator[Publisher]:
        yield self

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        """Put all messages on their queues, or none."""
        bodies = defaultdict[str, dict[str, bytes]](dict)
        async for message in in_bursts(messages):
            message.options["redis_message_id"] = str(uuid4())
            self.emit_before("enqueue", message, None)
            bodies[message.queue_name][_redis_id(message)] = message.encode()
        await asyncio.to_thread(self._store, bodies)
        async for message in in_bursts(messages):
            self.emit_after("enqueue", message, None)

    def _store(self, bodies: Mapping[str, Mapping[str, bytes]]) -> None:
        with _unavailable():
            pipeline = self.client.pipeline()
            for queue_name, batch in bodies.items():
                pipeline.hset(self._messages_key(queue_name), mapping=batch)
                pipeline.rpush(self._key(queue_name), *batch)
            pipeline.execute()

    def ping(self) -> None:
        with _unavailable():
            self.client.ping()

    def eviction_policy(self) -> str:
        with _unavailable():
            memory = self.client.info("memory")
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        return policy if memory.get("maxmemory") and policy != "noeviction" else ""

    def has_workers(self, queue_name: str) -> bool:
        oldest = current_millis() - self.heartbeat_timeout
        with _unavailable():
            return bool(self.client.zcount(self._key("__heartbeats__"), oldest, "+inf"))

    def maintain(self) -> None:
        """Requeue the messages of dead workers, and delete expired dead letters."""
        with _unavailable():
            now = current_millis()
            # This worker is alive, even if it was frozen or has not fetched messages for a while.
            heartbeats = self._key("__heartbeats__")
            self.client.zadd(heartbeats, {self.broker_id: now})
            beats = self.client.zrange(heartbeats, 0, -1, withscores=True)
            seen_at = time.monotonic()
            self._seen_at = {beat: self._seen_at.get(beat, seen_at) for beat in beats}
            for (worker, _), since in self._seen_at.items():
                if (seen_at - since) * 1000 >= self.heartbeat_timeout:
                    self._redeliver_from(worker.decode())
            for queue_name in self.queues:
                dead = self._key(xq_name(queue_name))
                old = self.client.zrangebyscore(dead, 0, now - self.dead_message_ttl)
                if old:
                    self._delete_dead(dead, old)

    def _redeliver_from(self, worker: str) -> None:
        prefix, count = self._key(f"__acks__.{worker}."), 0
        for acks in list(self.client.scan_iter(match=f"{prefix}*", count=1000)):
            queue_name = acks.decode().removeprefix(prefix)
            messages = self._messages_key(queue_name)
            for key in self.client.smembers(acks):
                body = self.client.hget(messages, key) or b""
                message = read_message(body)
                if message.actor_name != UNREADABLE:
                    body = message.copy(options={REDELIVERED: True}).encode()
                keys = [acks, self._key(queue_name), messages]
                count += self._redeliver(keys=keys, args=[key, body])
        self.client.zrem(self._key("__heartbeats__"), worker)
        if count:
            log.warning("worker_died", worker=worker, messages=count)

    def is_redelivered(self, message: MessageProxy) -> bool:
        return bool(message.options.pop(REDELIVERED, False))

    def queue_state(self, queue_name: str) -> QueueState:
        with _unavailable():
            pipeline = self.client.pipeline(transaction=False)
            pipeline.hlen(self._messages_key(queue_name))
            pipeline.hlen(self._messages_key(dq_name(queue_name)))
            pipeline.zcard(self._key(xq_name(queue_name)))
            pipeline.lindex(self._key(queue_name), 0)
            waiting, delayed, dead, first = pipeline.execute()
            body = first and self.client.hget(self._messages_key(queue_name), first)
        return QueueState(waiting, delayed, dead, _age(body) if body else 0.0)

    def move_to_dead_letters(self, queue_name: str, message: MessageProxy) -> None:
        keys = [
            self._acks_key(queue_name),
            self._messages_key(queue_name),
            self._key(xq_name(q_name(queue_name))),
        ]
        self._move_to_dead(keys=keys, args=[_redis_id(message), message.encode(), current_millis()])

    def add_dead_letter(self, queue_name: str, letter_id: str, body: bytes) -> None:
        dead = self._key(xq_name(queue_name))
        with _unavailable():
            pipeline = self.client.pipeline()
            pipeline.hset(f"{dead}.msgs", letter_id, body)
            pipeline.zadd(dead, {letter_id: current_millis()})
            pipeline.execute()

    def dead_letters(self, queue_name: str, *, limit: int) -> Sequence[DeadLetter]:
        with _unavailable():
            return [letter for _, letter in self._find_dead(queue_name, limit)]

    def requeue_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        keys, count = [self._key(xq_name(queue_name)), self._key(queue_name)], 0
        with _unavailable():
            for key, letter in reversed(self._find_dead(queue_name)):
                if is_selected(letter, ids) and letter.message.actor_name != UNREADABLE:
                    message = without_failure_metadata(letter.message).copy(queue_name=queue_name)
                    count += self._requeue_dead(keys=keys, args=[key, message.encode()])
        return count

    def purge_dead(self, queue_name: str, ids: Collection[str] | None = None) -> int:
        with _unavailable():
            found = self._find_dead(queue_name)
            keys = [key for key, letter in found if is_selected(letter, ids)]
            return self._delete_dead(self._key(xq_name(queue_name)), keys) if keys else 0

    def _find_dead(self, queue_name: str, limit: int = 0) -> list[tuple[bytes, DeadLetter]]:
        """Return dead letters with their ids in Redis, newest first. A limit of 0 returns all."""
        dead = self._key(xq_name(queue_name))
        found = self.client.zrevrange(dead, 0, limit - 1, withscores=True)
        bodies = self.client.hmget(f"{dead}.msgs", [key for key, _ in found]) if found else []
        letters = []
        for (key, died), body in zip(found, bodies, strict=True):
            letter_id = key.decode(errors="backslashreplace")
            message = read_message(body or b"", queue_name, letter_id)
            died_at = datetime.fromtimestamp(died / 1000, UTC)
            letters.append((key, DeadLetter(message.message_id, message, died_at)))
        return letters

    def _delete_dead(self, dead: str, keys: Sequence[bytes]) -> int:
        pipeline = self.client.pipeline()
        pipeline.zrem(dead, *keys)
        pipeline.hdel(f"{dead}.msgs", *keys)
        count: int = pipeline.execute()[0]
        return count

    def _key(self, name: str) -> str:
        return f"{self.namespace}:{name}"

    def _acks_key(self, queue_name: str) -> str:
        return self._key(f"__acks__.{self.broker_id}.{queue_name}")

    def _messages_key(self, queue_name: str) -> str:
        return f"{self.namespace}:{queue_name}.msgs"


def _redis_id(message: Message[Any] | MessageProxy) -> str:
    return str(message.options["redis_message_id"])


def _age(body: bytes) -> float:
    message = read_message(body)
    since: int = message.options.get("requeue_timestamp", message.message_timestamp)
    return max(0.0, (current_millis() - since) / 1000)
