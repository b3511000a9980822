"""What corrects Dramatiq 2.2. Each part says with which release of Dramatiq it can go.

The consumers in `brokers/` correct it too, where they say "Dramatiq 2.2".
"""

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.errors import ConnectionFailed
from dramatiq.middleware import AsyncIO

BOOT_SECONDS = 10.0
DEBOUNCE_SECONDS = 1.0


# Until Dramatiq starts its event loop in a daemon thread; 2.2.1 does not (dramatiq/asyncio.py).
class DaemonAsyncIO(AsyncIO):
    """Dramatiq's event loop, in a thread that does not keep the process alive.

    A second SIGTERM ends a worker process without stopping the loop: the process would hang.
    """

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        thread = _LoopThread(self.logger)
        thread.daemon = True
        thread.start(timeout=BOOT_SECONDS)
        set_event_loop_thread(thread)


# Until Dramatiq's event loop survives a task that raises SystemExit; that of 2.2.1 ends.
class _LoopThread(EventLoopThread):
    def run(self) -> None:
        """Run the loop again after a SystemExit: asyncio passes it to the task and ends the loop."""
        while True:
            try:
                self.loop.run_forever()
            except SystemExit:
                self.logger.exception("A task has raised SystemExit.")
            else:
                break
        self.loop.close()


# Until Dramatiq takes signals that come at once for one; 2.2.1 does not (dramatiq/cli.py).
def debounce_sigterm() -> None:
    """Let a worker process stop in order when its whole group gets the signal, as from systemd.

    It then gets one SIGTERM of its own and one that the main process passes on. Dramatiq takes the
    second for a user who does not want to wait, and drops what the process works on.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if getattr(stop, "__module__", None) != "dramatiq.cli" or not callable(stop):
        return  # no worker process: a test, say
    last = -math.inf

    def stop_once(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > DEBOUNCE_SECONDS:
            stop(number, frame)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop_once)


# Until Dramatiq can be told not to warn of results that no result backend stores; 2.2.1 cannot.
def silence_result_warnings() -> None:
    """Drop the warning "returned a value that is not None": we keep results of tracked tasks."""
    logger = logging.getLogger("dramatiq.worker.WorkerThread")
    logger.addFilter(lambda record: "returned a value that is not None" not in str(record.msg))


# Until Dramatiq takes every fault of a broker's client for a lost connection; 2.2.1 knows some of
# their errors only (Bogdanp/dramatiq#894).
@contextmanager
def connection_errors(*errors: type[Exception]) -> Iterator[None]:
    """Raise ConnectionFailed for any of the errors: Dramatiq then tries again later.

    Of another error it logs a traceback, or passes it on.
    """
    try:
        yield
    except errors as error:
        raise ConnectionFailed(str(error) or repr(error)) from error
