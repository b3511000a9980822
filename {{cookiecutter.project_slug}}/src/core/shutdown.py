"""The graceful shutdown of the API after SIGTERM, and of child processes without a parent."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from starlette.types import Scope

log = structlog.get_logger(__name__)

_CANCEL_SECONDS = 3
_WATCH_SECONDS = 0.5  # workers ignore a SIGTERM that follows another one within a second


@dataclass
class Shutdown:
    is_requested: bool = False

    @asynccontextmanager
    async def on_sigterm(self, delay: float) -> AsyncGenerator[None]:
        """Let the server stop `delay` seconds after SIGTERM. Readiness fails immediately.

        A proxy needs this time to notice. uvicorn has no hook for it, but its signal handler is
        installed before the lifespan starts. A second SIGTERM changes nothing, because systemd
        sends one to each process of `--workers`, and so does their parent. SIGINT has no delay.
        """
        stop = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(stop):
            yield  # a test runs the application, not a server
            return
        loop = asyncio.get_running_loop()

        def request(number: int) -> None:
            if not self.is_requested:
                self.is_requested = True
                log.info("api_stopping", delay_seconds=delay)
                loop.call_later(delay, stop, number, None)

        signal.signal(signal.SIGTERM, lambda number, _: loop.call_soon_threadsafe(request, number))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, stop)
        # uvicorn has cancelled the requests whose time is over, and does not wait for their responses.
        if cancelled := [task for task in asyncio.all_tasks() if task.cancelling()]:
            await asyncio.wait(cancelled, timeout=_CANCEL_SECONDS)


def is_stopping(scope: Scope) -> bool:
    shutdown = scope.get("state", {}).get("shutdown")
    return shutdown is not None and shutdown.is_requested


def end_with_parent(number: signal.Signals) -> None:
    """Send this signal to the current process when its parent process is killed.

    Nothing else stops the other processes of `--workers` then.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    creator = os.getppid()

    def watch() -> None:
        # A forked sibling keeps `parent` alive. With a fork server, `creator` is not the parent.
        while parent.is_alive() and os.getppid() == creator:
            parent.join(_WATCH_SECONDS)
        log.warning("parent_process_died")
        signal.raise_signal(number)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
