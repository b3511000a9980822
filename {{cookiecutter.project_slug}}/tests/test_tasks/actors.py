"""Tasks that note in a file what they do, for workers in this process and in others."""

import asyncio
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import structlog
from dramatiq import Broker

from src.db.models.item import Item
from src.domain.errors import DomainError
from src.tasks.context import message_id, report_progress, run, transaction

log = structlog.get_logger(__name__)

STOPPING = "It stops as soon as its tasks have ended."  # what the worker of a test tells then


class NoLampsError(DomainError):
    code = "no-lamps"
    title = "No lamps"


def write(path: str, word: str) -> None:
    """Append in one step, so that processes may share the file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{word}\n")


def words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def note(path: str, word: str) -> None:
    write(path, word)


def nap(path: str, seconds: float) -> str:
    write(path, "begun")
    time.sleep(seconds)
    write(path, "ended")
    return "rested"


def hold(path: str, gate: str) -> None:
    """Go on once there is a file at the gate."""
    write(path, "begun")
    while not Path(gate).exists():
        time.sleep(0.02)
    write(path, "ended")


async def doze(path: str, seconds: float) -> str:
    write(path, "begun")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        write(path, "cancelled")
        raise
    write(path, "ended")
    return "rested"


def die(path: str) -> None:
    write(path, "died")
    os._exit(1)


async def leave() -> None:
    sys.exit("A task must not end its worker.")


async def refuse(path: str) -> None:
    write(path, "refused")
    raise NoLampsError("There are no lamps.")


async def fail(path: str, times: int) -> str:
    """Fail so often, and then no more."""
    write(path, "tried")
    if len(words(Path(path))) <= times:
        raise ValueError("hunter2")
    return "done"


async def say(word: str) -> None:
    log.warning("said", word=word)


async def bring(path: str, what: str) -> Any:
    """Return what cannot be kept."""
    write(path, what)
    return {"set": {1}, "nan": math.nan, "surrogate": "\ud800"}[what]


async def count(path: str, total: int) -> int:
    """Tell how far it is, and wait at the middle until somebody writes."""
    for number in range(1, total + 1):
        async with transaction() as db:
            await report_progress(db, done=number, total=total)
        while number == total // 2 and not words(Path(path)):  # noqa: ASYNC110 - it may be another process
            await asyncio.sleep(0.02)
    return total


def call(path: str) -> None:
    """An actor that is no `async def`, and calls what is one."""
    run(_add_item("Lamp"))
    write(path, message_id() or "nobody")


async def _add_item(name: str) -> None:
    async with transaction() as db:
        db.add(Item(name=name))


DEEDS: tuple[Callable[..., Any], ...] = (
    note,
    nap,
    hold,
    doze,
    die,
    leave,
    refuse,
    fail,
    say,
    bring,
    count,
    call,
)


def declare(broker: Broker, queue: str) -> None:
    """Declare each on the queue; and `tracked_`, whose state is kept."""
    for deed in DEEDS:
        for prefix in ("", "tracked_"):
            named = dramatiq.actor(
                actor_name=f"{prefix}{deed.__name__}",
                queue_name=queue,
                broker=broker,
                tracked=bool(prefix),
                max_retries=3,
                min_backoff=50,
                max_backoff=100,
            )
            named(deed)
