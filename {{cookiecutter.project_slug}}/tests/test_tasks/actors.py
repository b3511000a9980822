"""Actors that log their steps in a file, for workers in this process and in others."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import structlog
from dramatiq import Broker

from src.domain.errors import DomainError
from src.tasks.context import message_id, report_progress, run, transaction
from tests.fixtures.notes import Note

log = structlog.get_logger(__name__)

STOPPING = "The worker stops as soon as its tasks have ended."  # written by a worker process


class RefusedError(DomainError):
    code = "refused"
    title = "Refused"
    message = "The task is refused."


def write(path: str, word: str) -> None:
    """Append in one step, so that processes can share the file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{word}\n")


def words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def note(path: str, word: str) -> None:
    write(path, word)


def shout(path: str) -> None:
    """Write 3 MB to the log, more than a pipe holds."""
    for _ in range(400):
        sys.stdout.write("a" * 4000)
        log.warning("shouted", text="a" * 4000)
    write(path, "ended")


def nap(path: str, seconds: float) -> str:
    write(path, "started")
    time.sleep(seconds)
    write(path, "ended")
    return "rested"


def wait_for_file(path: str, awaited: str) -> None:
    write(path, "started")
    while not Path(awaited).exists():
        time.sleep(0.02)
    write(path, "ended")


async def wait_for_file_async(path: str, awaited: str) -> None:
    write(path, "started")
    try:
        while not Path(awaited).exists():  # noqa: ASYNC110, ASYNC240 - it is in another process
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        write(path, "cancelled")
        raise
    write(path, "ended")


async def nap_in_thread(path: str, seconds: float) -> None:
    await asyncio.to_thread(nap, path, seconds)


async def nap_async(path: str, seconds: float) -> None:
    write(path, "started")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        write(path, "cancelled")
        raise
    write(path, "ended")


async def block(path: str, seconds: float) -> None:
    nap(path, seconds)


def kill_worker(path: str) -> None:
    write(path, "died")
    os._exit(1)


def crash(path: str, others: str, count: int) -> None:
    """Kill the worker like a lack of memory, once this many other tasks have written a word."""
    deadline = time.monotonic() + 2.0  # they do not start if this task runs alone
    while len(words(Path(others))) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    write(path, "died")
    os.kill(os.getpid(), signal.SIGKILL)


async def exit_process() -> None:
    sys.exit("A task must not end its worker.")


async def interrupt() -> None:
    raise KeyboardInterrupt


async def refuse(path: str) -> None:
    write(path, "refused")
    raise RefusedError


async def fail(path: str, times: int) -> str:
    """Fail this many times, then succeed."""
    write(path, "tried")
    if len(words(Path(path))) <= times:
        raise ValueError("hunter2")
    return "result"


async def count(path: str, total: int) -> int:
    """Report progress. After half of it, wait until the file has content."""
    for number in range(1, total + 1):
        async with transaction() as db:
            await report_progress(db, done=number, total=total)
        while number == total // 2 and not words(Path(path)):  # noqa: ASYNC110 - it may be another process
            await asyncio.sleep(0.02)
    return total


def add_note(path: str) -> None:
    """A sync actor that runs a coroutine."""

    async def add() -> None:
        async with transaction() as db:
            db.add(Note(text="Written by a task"))

    run(add())
    write(path, str(message_id()))


ACTORS: tuple[Callable[..., Any], ...] = (
    note, shout, nap, nap_in_thread, nap_async, wait_for_file, wait_for_file_async, block,
    kill_worker, crash, exit_process, interrupt, refuse, fail, count, add_note,
)  # fmt: skip


def declare(broker: Broker, queue: str) -> None:
    """Declare each actor on the queue, and a tracked copy named `tracked_…`."""
    for function in ACTORS:
        for prefix in ("", "tracked_"):
            decorate = dramatiq.actor(
                actor_name=f"{prefix}{function.__name__}",
                queue_name=queue,
                broker=broker,
                tracked=bool(prefix),
                max_retries=3,
                min_backoff=50,
                max_backoff=100,
            )
            decorate(function)
