"""Redis cache backend, shared by all processes: Redis 7 or newer, or Valkey."""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, ParamSpec, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterNode, ClusterPipeline
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError, Value
from src.cache.backends.redis_reads import SharedReads
from src.core.rate_limits import Counted
from src.core.redis_url import RedisURL

SOCKET_SECONDS: Final = 0.5  # timeout to connect, and for each response
WAIT_SECONDS: Final = 0.5  # timeout to get a connection while all are in use
MAX_CONNECTIONS: Final = 50  # per process; more are not faster
SCAN_BATCH: Final = 1000
MAX_COUNTED_BATCHES: Final = 10

# Marks values of type bytes. Text is stored as UTF-8, which never starts with this byte.
_BYTES_PREFIX = b"\xff"
_UNAVAILABLE = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    RedisClusterException,
    OSError,
)
COMMON_OPTIONS: Final[dict[str, Any]] = {
    "protocol": 2,  # version 3 sends three more commands for each new connection
    "driver_info": None,
    "max_connections": MAX_CONNECTIONS + 1,  # and a ping
    "socket_connect_timeout": SOCKET_SECONDS,
    "socket_timeout": SOCKET_SECONDS,
}

_IF_LEASED_SCRIPT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3))
"""
_SET_IF_LEASED_SCRIPT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[2], unpack(ARGV, 2))
return 1
"""

P = ParamSpec("P")
T = TypeVar("T")
Client = Redis | RedisCluster
Command = tuple[str | bytes | int, ...]


def create_client(url: RedisURL) -> Client:
    """Create a client, which connects on first use."""
    # Retry once, immediately: the server may have closed an idle connection. Do not retry after a
    # timeout: an unavailable server must be detected quickly.
    retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    options: dict[str, Any] = {**COMMON_OPTIONS, "retry": retry}
    if url.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in url.nodes]
        return RedisCluster.from_url(url.server, startup_nodes=nodes, **options)
    if url.kind == "sentinel":
        sentinel = Sentinel(url.nodes, sentinel_kwargs={**options, **url.tls_options})
        master: Redis = sentinel.master_for(url.service, **options, **url.options)
        return master
    return Redis.from_url(url.server, **options)


async def close_client(client: Client) -> None:
    await client.aclose()
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        await client.connection_pool.sentinel_manager.aclose()


class RedisBackend(CacheBackend):
    """Values have the key `namespace::key`, leases have the key `lease{namespace::key}`.

    Other programs write `namespace:key`. The keys differ even if the namespaces are equal.

    In a Redis Cluster, the braces store a lease on the same node as its value, so that one script
    can use both. This does not work for a key that contains `}`: `set_if_leased` then needs two
    commands.
    """

    name = "redis"

    def __init__(self, url: RedisURL, *, namespace: str, ttl: float | None = None) -> None:
        super().__init__(ttl=ttl)
        self._client = create_client(url)
        self._in_cluster = url.kind == "cluster"
        self._prefix = f"{namespace}::"
        self._prefix_pattern = re.sub(r"([*?\[\]\\^-])", r"\\\1", self._prefix)
        # redis-py's BlockingConnectionPool makes each command a fifth slower.
        self._connection_slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._reads = SharedReads(lambda names: self._execute("MGET", *names))
        self._if_leased_script = self._client.register_script(_IF_LEASED_SCRIPT)
        self._set_if_leased_script = self._client.register_script(_SET_IF_LEASED_SCRIPT)

    async def aclose(self) -> None:
        await self._reads.aclose()
        await close_client(self._client)

    async def get(self, key: str) -> Value | None:
        return (await self.get_many(key))[0]

    async def get_many(self, *keys: str) -> list[Value | None]:
        if not keys:
            return []
        names = [self._prefix + key for key in keys]
        if self._in_cluster:
            found = await self._send_all([("GET", name) for name in names])
        else:
            found = await self._reads.get(names)
        return [_decode(value) for value in found]

    async def set(self, key: str, value: Value, ex: float | None = None) -> None:
        await self._execute("SET", self._prefix + key, _encode(value), *self._expiry(ex))

    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        name = self._prefix + key
        return bool(await self._execute("SET", name, _encode(value), "NX", *self._expiry(ex)))

    async def delete(self, *keys: str) -> int:
        # Leases first: a value that is stored between the two commands is then deleted too.
        leases = self._unlink_commands([self._lease_key(key) for key in keys])
        values = self._unlink_commands([self._prefix + key for key in keys])
        counts = await self._send_all([*leases, *values])
        return sum(counts[len(leases) :])

    async def delete_matching(self, pattern: str) -> int:
        # As in `delete`, leases first.
        matching = self._prefix_pattern + pattern
        await self._unlink_matching(_to_lease_key(matching))
        return await self._unlink_matching(matching)

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        seen = set()
        async with aclosing(self._scan(self._prefix_pattern + pattern)) as batches:
            async for names in batches:
                for name in names:
                    if name not in seen:
                        seen.add(name)
                        yield name.decode(errors="replace")[len(self._prefix) :]

    async def flush(self) -> None:
        await self.delete_matching("*")

    async def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        # `get=True`: redis-py may send the command twice, and the first one may have succeeded.
        lease, px = self._lease_key(key), _milliseconds(seconds)
        holder = await self._call(self._client.set, lease, token, px=px, nx=True, get=True)
        return holder in {None, token.encode()}

    async def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        arguments: list[str | int] = [token, "PEXPIRE", _milliseconds(seconds)]
        return bool(await self._call(self._if_leased_script, [self._lease_key(key)], arguments))

    async def set_if_leased(
        self, key: str, token: str, value: Value, ex: float | None = None
    ) -> bool:
        expiry = self._expiry(ex)
        lease = self._lease_key(key)
        if self._in_cluster and "}" in key:
            is_held = bool(await self._call(self._if_leased_script, [lease], [token, "UNLINK"]))
            if is_held:
                await self.set(key, value, ex)
            return is_held
        arguments: list[str | bytes | int] = [token, _encode(value), *expiry]
        return bool(
            await self._call(self._set_if_leased_script, [lease, self._prefix + key], arguments)
        )

    async def release_lease(self, key: str, token: str) -> None:
        await self._call(self._if_leased_script, [self._lease_key(key)], [token, "UNLINK"])

    async def count(self, key: str, seconds: int) -> Counted:
        name = "rate{" + self._prefix + key + "}"  # not a value, so `flush()` does not delete it
        commands: list[Command] = [("INCR", name), ("EXPIRE", name, seconds, "NX"), ("PTTL", name)]
        number, _, milliseconds = await self._send_all(commands)
        return Counted(number, milliseconds / 1000)

    async def ping(self) -> None:
        """Write a key that expires. Do not wait while all connections are in use."""
        try:
            await self._client.set(self._lease_key("") + "ping", "", px=1)
        except (*_UNAVAILABLE, RedisError) as error:
            raise _cache_error(error) from error

    async def info(self) -> dict[str, Any]:
        """Return the number of entries (capped, to limit the scan) and the memory of the server."""
        reports = [await self._call(node.execute_command, "INFO") for node in await self._nodes()]
        names: set[bytes] = set()
        batches_left = MAX_COUNTED_BATCHES
        async with aclosing(self._scan(self._prefix_pattern + "*")) as batches:
            async for batch in batches:
                names.update(batch)
                batches_left -= 1
                if batches_left < 0:
                    break
        server = reports[0].get("server_name", "redis")
        version = reports[0].get(f"{server}_version", reports[0]["redis_version"])
        return {
            "server": f"{server} {version}",
            "entries": len(names),
            "entries_capped": batches_left < 0,
            "memory_bytes": sum(report["used_memory"] for report in reports),
        }

    async def _unlink_matching(self, pattern: str) -> int:
        count = 0
        async with aclosing(self._scan(pattern)) as batches:
            async for names in batches:
                count += sum(await self._send_all(self._unlink_commands(names)))
        return count

    def _unlink_commands(self, names: Sequence[str | bytes]) -> list[Command]:
        if self._in_cluster:
            return [("UNLINK", name) for name in names]
        return [("UNLINK", *names)] if names else []

    async def _scan(self, pattern: str) -> AsyncGenerator[list[bytes]]:
        for node in await self._nodes():
            cursor = None
            while cursor != 0:
                command: Command = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", SCAN_BATCH)
                cursor, names = await self._call(node.execute_command, *command)
                yield names

    async def _nodes(self) -> Sequence[Redis | ClusterNode]:
        if isinstance(self._client, Redis):
            return [self._client]
        await self._call(self._client.initialize)
        return self._client.get_primaries()

    async def _send_all(self, commands: Sequence[Command]) -> list[Any]:
        """Send the commands in one round trip, without a transaction."""
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        # `raise_on_error=True` would quote the command, and so a value, in the error message.
        return await self._call(_execute_pipeline, pipeline)

    async def _execute(self, *command: str | bytes | int) -> Any:
        return await self._call(self._client.execute_command, *command)

    async def _call(
        self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._connection_slots.locked():
            await self._acquire_slot()
        else:
            await self._connection_slots.acquire()
        try:
            return await function(*args, **kwargs)
        except (*_UNAVAILABLE, RedisError) as error:
            raise _cache_error(error) from error
        finally:
            self._connection_slots.release()

    async def _acquire_slot(self) -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._connection_slots.acquire()
        except TimeoutError:
            raise CacheUnavailableError(
                f"Redis is busy: all {MAX_CONNECTIONS} connections were in use"
                f" for {WAIT_SECONDS:g} s."
            ) from None

    def _expiry(self, ex: float | None) -> tuple[()] | tuple[str, int]:
        seconds = self.lifetime(ex)
        return () if seconds is None else ("PX", _milliseconds(seconds))

    def _lease_key(self, key: str) -> str:
        return _to_lease_key(self._prefix + key)


def _to_lease_key(name: str) -> str:
    return "lease{" + name + "}"


def _cache_error(error: Exception) -> CacheError:
    if isinstance(error, _UNAVAILABLE):
        cause = str(error).partition(" : <")[0]  # without the list of all Sentinels
        return CacheUnavailableError(f"Redis is unavailable: {cause}")
    return CacheError(f"Redis returned an error: {error}")


async def _execute_pipeline(pipeline: Pipeline | ClusterPipeline) -> list[Any]:
    results = await pipeline.execute(raise_on_error=False)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _encode(value: Value) -> bytes:
    return value.encode() if isinstance(value, str) else _BYTES_PREFIX + value


def _decode(stored: bytes | None) -> Value | None:
    if stored is None:
        return None
    if stored.startswith(_BYTES_PREFIX):
        return stored[1:]
    try:
        return stored.decode()
    except UnicodeDecodeError:  # another program set this value
        return None
