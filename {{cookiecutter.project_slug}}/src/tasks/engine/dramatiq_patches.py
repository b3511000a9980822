"""Fixes for Dramatiq 2.2. The comment on each one says when it can be removed.

The consumers in `brokers/` have more fixes, with the comment "Dramatiq 2.2".
"""

import asyncio
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TextIO, TypeVar, cast

from dramatiq import Broker, Worker, get_broker, worker
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread
from dramatiq.errors import ConnectionFailed
from dramatiq.middleware import AsyncIO, Shutdown

from src.core.config import Settings
from src.core.logging import configure_logging

T = TypeVar("T")

BOOT_SECONDS = 10.0
DEBOUNCE_SECONDS = 1.0
INTERRUPT_SECONDS = 5.0


# Remove when Dramatiq starts its event loop in a daemon thread. 2.2.1 does not.
class DaemonAsyncIO(AsyncIO):
    """Runs Dramatiq's event loop in a daemon thread, which does not keep the process alive.

    A worker that ends because of an unknown queue does not stop the loop, so it would hang.
    """

    def __init__(self) -> None:
        super().__init__()
        if get_event_loop_thread() is None:
            set_event_loop_thread(cast(EventLoopThread, _NoWorker()))

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        thread = _LoopThread(self.logger)
        thread.daemon = True
        thread.start(timeout=BOOT_SECONDS)
        set_event_loop_thread(thread)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        super().after_worker_shutdown(broker, worker)  # type: ignore[no-untyped-call]  # untyped in Dramatiq
        set_event_loop_thread(cast(EventLoopThread, _NoWorker()))


# Remove when Dramatiq rejects this. In 2.2.1 the loop waits for itself, and the worker hangs.
def reject_in_event_loop(work: Awaitable[Any]) -> None:
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public one raises
        _close(work)
        raise RuntimeError(
            "This would block the event loop: `await` the coroutine instead of calling run(), and"
            " enqueue() the actor instead of calling it."
        )


def _close(work: Awaitable[Any]) -> None:
    """Avoid the warning that it was never awaited."""
    if isinstance(work, Coroutine):
        work.close()


class _NoWorker:
    """Has the method of an event loop thread, for processes that are not workers."""

    def run_coroutine(self, work: Awaitable[Any]) -> None:
        reject_in_event_loop(work)
        _close(work)
        raise RuntimeError(
            "Only a worker can run this: enqueue() the actor, or use run_task() in a test."
        )


# Remove when Dramatiq's event loop survives a task that raises SystemExit. In 2.2.1 it ends.
class _LoopThread(EventLoopThread):
    def run(self) -> None:
        """Restart the loop after the two exceptions that asyncio re-raises from `run_forever`."""
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # Dramatiq logs it
            break
        self.loop.close()

    def run_coroutine(self, work: Awaitable[T]) -> T:
        reject_in_event_loop(work)
        return super().run_coroutine(work)

    def stop(self) -> None:
        """Stop the loop. Dramatiq's method does nothing while the loop restarts."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()


# Remove when Dramatiq's processes do not wait for a reader of the log. In 2.2.1 they wait for the
# main process, which waits for the reader of its standard error.
def configure_child_logging(settings: Settings) -> None:
    """Let a process of Dramatiq write its log and its prints to standard error itself."""
    sys.stderr = sys.__stderr__
    configure_logging(settings)
    (handler,) = logging.getLogger().handlers
    sys.stdout = sys.stderr = cast(logging.StreamHandler[TextIO], handler).stream


# Remove when Dramatiq ignores a repeated SIGTERM, and a later one interrupts tasks. 2.2.1 does not.
def debounce_sigterm() -> None:
    """Ignore a SIGTERM that follows another one within DEBOUNCE_SECONDS.

    systemd sends SIGTERM to all processes of a service. A worker process then gets that signal and
    another one from Dramatiq's main process. A later signal is a request to stop immediately.
    Dramatiq would not tell its middleware, and would wait for threads.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if getattr(stop, "__module__", None) != "dramatiq.cli" or not callable(stop):
        return  # not a worker process, for example a test
    last = -math.inf

    def stop_once(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > DEBOUNCE_SECONDS:
            if before == -math.inf:
                stop(number, frame)
                return
            broker = get_broker()
            interrupt = partial(broker.emit_before, "consumer_thread_shutdown", None)
            interrupting = threading.Thread(target=interrupt, daemon=True)
            interrupting.start()
            interrupting.join(INTERRUPT_SECONDS)
            broker.close()
            os._exit(1)  # without waiting for threads

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop_once)


def monotonic_millis() -> int:
    return time.monotonic_ns() // 1_000_000


# Remove when a delay does not change if the clock is set. In 2.2.1 a worker compares times of day.
# RetriesMiddleware converts `eta`.
vars(worker)["current_millis"] = monotonic_millis


# Remove when Dramatiq has an option to disable this warning. 2.2.1 has none.
def silence_result_warnings() -> None:
    """Drop the warning "returned a value that is not None": tracked tasks store their results."""
    logger = logging.getLogger("dramatiq.worker.WorkerThread")
    logger.addFilter(lambda record: "returned a value that is not None" not in str(record.msg))


# Remove when Dramatiq does not log an interrupted task as an error with a traceback. 2.2.1 does.
def demote_interruptions() -> None:
    """Log it as a warning: the task starts again, and its code did not fail."""
    logging.getLogger("dramatiq.worker.WorkerThread").addFilter(_demote_interruption)


def _demote_interruption(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], Shutdown):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.exc_info = "Interrupted %s. It starts again.", None
    return True


# Remove when Dramatiq treats every error of a broker's client as a lost connection. 2.2.1 knows
# only some of them (Bogdanp/dramatiq#894).
@contextmanager
def connection_errors(*errors: type[Exception]) -> Iterator[None]:
    """Raise ConnectionFailed instead of these errors, so that Dramatiq tries again later."""
    try:
        yield
    except errors as error:
        raise ConnectionFailed(str(error) or repr(error)) from error
