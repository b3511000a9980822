"""Test that killed processes lose and repeat no task: `python soak.py redis|rabbitmq`.

Clients post 10,000 files of one item each, and a worker imports them. The broker is restarted twice,
the worker killed twice and the API once. A client without a response repeats its request with the
same Idempotency-Key. In the end there must be exactly 10,000 items.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
from harness import SERVICE, migrated
from sqlalchemy import URL, func, select
from tests.proxy import Proxy

from dev.rabbitmq import embedded_rabbitmq
from dev.valkey import embedded_valkey
from src.db import open_database
from src.db.models.item import Item
from src.db.models.task import OutboxMessage, Task
from src.domain.task import TaskStatus

CLIENTS = 16
PORT = 18765
TIMEOUT = 900.0  # seconds


class Program:
    """One of the service's commands, in a separate process group, which is killed as a whole."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = [sys.executable, "cli.py", *arguments]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._arguments, cwd=SERVICE, stderr=subprocess.DEVNULL, process_group=0
        )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class BrokerServer:
    """A broker with stored data, behind an address that does not change when it restarts."""

    def __init__(self, kind: str, data: Path) -> None:
        self._kind = kind
        self._data = data
        self._stack = ExitStack()
        self._start()
        self.proxy = Proxy(self._connect)

    @contextmanager
    def _server(self) -> Iterator[str]:
        if self._kind == "rabbitmq":
            with embedded_rabbitmq(self._data) as url:
                yield url
        else:
            with embedded_valkey(data=self._data) as url:
                yield url

    def _start(self) -> None:
        self._url = self._stack.enter_context(self._server())

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._kind == "rabbitmq":
            return await asyncio.open_connection("127.0.0.1", int(self._url.rpartition(":")[2]))
        return await asyncio.open_unix_connection(self._url.removeprefix("unix://"))

    @property
    def settings(self) -> dict[str, str]:
        if self._kind == "rabbitmq":
            url = f"amqp://guest:guest@127.0.0.1:{self.proxy.port}"
            return {"DRAMATIQ_BROKER": "rabbitmq", "RABBITMQ_URL": url}
        url = f"redis://127.0.0.1:{self.proxy.port}"
        return {"DRAMATIQ_BROKER": "redis", "DRAMATIQ_REDIS_URL": url}

    async def restart(self) -> None:
        await self.proxy.stop()
        await asyncio.to_thread(self._stack.close)
        await asyncio.to_thread(self._start)
        await self.proxy.start()

    def close(self) -> None:
        self._stack.close()


@asynccontextmanager
async def broker_server(kind: str) -> AsyncGenerator[BrokerServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = BrokerServer(kind, Path(folder))
        await server.proxy.start()
        try:
            yield server
        finally:
            await server.proxy.stop()
            server.close()


class Clients:
    """Clients that post each file until it is accepted."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._numbers = iter(range(count))
        self.accepted = 0
        self.repeated = 0

    async def run(self) -> None:
        url = f"http://127.0.0.1:{PORT}/api/v1/item-imports/"
        async with httpx.AsyncClient(timeout=10) as client:
            await asyncio.gather(*(self._post_all(client, url) for _ in range(CLIENTS)))

    async def _post_all(self, client: httpx.AsyncClient, url: str) -> None:
        for number in self._numbers:
            headers = {"Idempotency-Key": str(uuid4()), "Content-Type": "text/csv"}
            content = f"name\nItem {number}\n".encode()
            while not await self._is_accepted(client, url, headers, content):
                self.repeated += 1
                await asyncio.sleep(0.2)
            self.accepted += 1

    async def _is_accepted(
        self, client: httpx.AsyncClient, url: str, headers: dict[str, str], content: bytes
    ) -> bool:
        try:
            response = await client.post(url, headers=headers, content=content)
        except httpx.TransportError:
            return False
        return response.status_code == httpx.codes.ACCEPTED

    async def reached(self, share: float) -> None:
        while self.accepted < share * self._count:  # noqa: ASYNC110 - polling is enough
            await asyncio.sleep(0.01)


async def counts(url: URL) -> tuple[int, int, int, int]:
    """Return the numbers of items, succeeded tasks, repeated tasks and unsent messages."""
    async with open_database(url, pool_size=1) as database, database.reads() as session:
        items = await session.scalar(select(func.count()).select_from(Item))
        done = await session.scalar(select(func.count()).where(Task.status == TaskStatus.SUCCEEDED))
        again = await session.scalar(select(func.count()).where(Task.attempts > 1))
        unsent = await session.scalar(select(func.count()).select_from(OutboxMessage))
        return items or 0, done or 0, again or 0, unsent or 0


def say(text: str) -> None:
    sys.stdout.write(f"{time.monotonic() - STARTED:6.1f} s  {text}\n")
    sys.stdout.flush()


async def soak(kind: str, count: int, url: URL) -> bool:
    async with broker_server(kind) as server:
        os.environ |= server.settings | {
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "CACHE_BACKEND_TYPE": "memory",
            "SCHEDULER_ENABLED": "false",
        }
        api = Program("api", "--port", str(PORT))
        worker = Program("worker", "--processes", "2", "--threads", "4")
        clients = Clients(count)
        posting = asyncio.create_task(clients.run())
        faults: list[tuple[float, str, Callable[[], object]]] = [
            (0.15, "the worker is killed", worker.restart),
            (0.3, "the broker is restarted", server.restart),
            (0.45, "the API is killed", api.restart),
            (0.6, "the broker is restarted", server.restart),
            (0.75, "the worker is killed", worker.restart),
        ]
        for share, what, act in faults:
            await clients.reached(share)
            say(f"{clients.accepted} accepted: {what}")
            happening = act()
            if asyncio.iscoroutine(happening):
                await happening
        await posting
        say(f"{clients.accepted} accepted, after {clients.repeated} repeated requests")
        is_correct = await until_done(url, count)
        # In a thread, because this loop serves the address of the broker.
        await asyncio.to_thread(worker.stop)
        await asyncio.to_thread(api.stop)
        return is_correct


async def until_done(url: URL, count: int) -> bool:
    deadline = time.monotonic() + TIMEOUT
    while True:
        items, done, again, unsent = await counts(url)
        is_over = done == count and not unsent
        if is_over or time.monotonic() > deadline:
            say(f"{done} tasks succeeded, {again} after a repeat; {items} items; {unsent} unsent")
            return is_over and items == count
        await asyncio.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("broker", choices=["redis", "rabbitmq"])
    parser.add_argument("--count", type=int, default=10_000)
    arguments = parser.parse_args()
    with migrated() as url:
        is_correct = asyncio.run(soak(arguments.broker, arguments.count, url))
    say("passed" if is_correct else "FAILED")
    sys.exit(not is_correct)


STARTED = time.monotonic()

if __name__ == "__main__":
    main()
