import multiprocessing
import os
import threading
import time
from contextlib import suppress
from typing import Any

from dramatiq import Broker, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Shutdown, ShutdownNotifications
from dramatiq.threading import Interrupt, raise_thread_exception
from dramatiq.worker import ConsumerThread

from src.tasks.engine.middleware.base import AttemptMiddleware

CLEANUP_SECONDS = 2.0
EXIT_SECONDS = 5.0  # after the interruption, even if a task blocks the event loop


class InterruptionMiddleware(ShutdownNotifications):
    """Interrupts the tasks that still run when the shutdown timeout of the worker is over.

    Their outcome is ignored: no retry is counted, and the message is not acknowledged. The broker
    gives it to another worker when this one closes its connections. The process then exits without
    waiting for threads, because a task that cannot be interrupted would run twice at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads = set[int]()  # those that run a task
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._has_interrupted = False

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._is_over.clear()

    def before_consumer_thread_shutdown(self, broker: Broker, thread: ConsumerThread) -> None:
        """Dramatiq has waited for the tasks. It calls this in the thread of each queue."""
        with self._lock:
            if self._is_over.is_set():
                return
            self._is_over.set()
        if self._threads:
            self._interrupt(broker)
        # After the timer has started: this waits for the event loop, which a task may block.
        for middleware in broker.middleware:
            if isinstance(middleware, AttemptMiddleware):
                middleware.after_interruption()

    def _interrupt(self, broker: Broker) -> None:
        self._has_interrupted = True
        exiting = threading.Timer(EXIT_SECONDS, _exit, [broker])
        exiting.daemon = True
        exiting.start()
        for identifier in list(self._threads):
            raise_thread_exception(identifier, Shutdown)
        deadline = time.monotonic() + CLEANUP_SECONDS
        while self._threads and time.monotonic() < deadline:
            time.sleep(0.02)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._has_interrupted:
            _exit(broker)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        super().before_process_message(broker, message)  # type: ignore[no-untyped-call]  # untyped in Dramatiq
        self._threads.add(threading.get_ident())
        self._wait_for_exit()

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        super().after_process_message(broker, message)  # type: ignore[no-untyped-call]  # untyped in Dramatiq
        self._threads.discard(threading.get_ident())
        self._wait_for_exit()

    after_skip_message = after_process_message

    def _wait_for_exit(self) -> None:
        """If the shutdown timeout is over, stay here: the next step would record an outcome."""
        while self._is_over.is_set():
            with suppress(Interrupt):
                threading.Event().wait()


def _exit(broker: Broker) -> None:
    if multiprocessing.parent_process() is not None:  # else it is a test, not a worker process
        try:
            broker.close()
        finally:
            os._exit(0)
