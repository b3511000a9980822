"""Servers with stored data that tests kill, freeze and restart."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from dev.server import ServerError
from tests.fixtures.commands import LIMIT, Process, free_port
from tests.proxy import Proxy, Stream

FAULT_SECONDS = 3
APPLICATION = "tests.fixtures.client:application"  # with the notes


class Server:
    """A server of `dev`. Clients connect to `proxy`, whose address stays the same."""

    def __init__(
        self,
        run: Callable[[], AbstractContextManager[str]],
        connect: Callable[[str], Awaitable[Stream]],
    ) -> None:
        self._run = run
        self._stack = ExitStack()
        self.url = ""
        self.proxy = Proxy(lambda: connect(self.url))

    def start(self) -> None:
        before = children()
        self.url = self._stack.enter_context(self._run())
        after = children()
        # One of the new ones is `ps`, without children.
        new = [pid for pid in after[os.getpid()] if pid not in before and after[pid]]
        (self._supervisor,) = new

    def stop(self) -> None:
        self._stack.close()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it to all processes of the server."""
        found, pids = children(), [self._supervisor]
        for pid in pids:
            pids += found[pid]
        for pid in pids[1:]:
            with suppress(ProcessLookupError):  # some end when their parent does
                os.kill(pid, number)

    async def fail(self, fault: str) -> None:
        """Let the fault happen, and end it after some seconds."""
        if fault == "killed":
            self.send_signal(signal.SIGKILL)
        if fault in {"killed", "stopped"}:
            await asyncio.to_thread(self.stop)
            await asyncio.sleep(FAULT_SECONDS)
            await asyncio.to_thread(self.start)
        elif fault == "frozen":
            self.send_signal(signal.SIGSTOP)
            await asyncio.sleep(FAULT_SECONDS)
            self.send_signal(signal.SIGCONT)
        elif fault == "cut off":
            self.proxy.freeze()
            await asyncio.sleep(FAULT_SECONDS)
            await self.proxy.stop()
            await self.proxy.start()


def children() -> dict[int, list[int]]:
    """Return the children of each process."""
    command = ["ps", "-A", "-o", "pid=,ppid="]
    listed = subprocess.run(command, capture_output=True, check=True)
    pairs = (line.split() for line in listed.stdout.splitlines())
    parents = {int(pid): int(parent) for pid, parent in pairs}
    return {pid: [child for child in parents if parents[child] == pid] for pid in parents}


@asynccontextmanager
async def serving(server: Server) -> AsyncGenerator[Server]:
    try:
        await asyncio.to_thread(server.start)
    except ServerError as error:
        pytest.skip(str(error))
    await server.proxy.start()
    try:
        yield server
    finally:
        await server.proxy.stop()
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def api(
    application: str, *flags: str, folder: Path, **variables: str
) -> AsyncGenerator[tuple[Process, str]]:
    """Serve what the function `application` returns; yield the process and its address."""
    port = free_port()
    arguments = ("-m", "uvicorn", "--factory", application, "--port", port, *flags)
    process = Process(*arguments, log=folder / "api.log", **variables)
    try:
        for words in ("Uvicorn running on", "Application startup complete"):
            await asyncio.to_thread(process.wait_for_log, words)
        yield process, f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, LIMIT)
    finally:
        process.kill()
