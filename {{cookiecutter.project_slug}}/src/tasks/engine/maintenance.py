"""Background work of a worker process: broker maintenance, heartbeat, pruning."""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from src.core.config import Settings
from src.core.process_metrics import SHARED_FOLDER
from src.db import Database
from src.db.session import DatabaseUnavailableError
from src.repositories.retention import delete_expired
from src.tasks.engine.brokers.base import BrokerUnavailableError, TaskBroker

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 3.0
BLOCKED_SECONDS = 1.0
PRUNE_SECONDS = 3600.0


@asynccontextmanager
async def open_maintenance(
    settings: Settings, broker: TaskBroker, database: Database
) -> AsyncGenerator[None]:
    loops = [
        asyncio.create_task(_maintain_broker(broker)),
        asyncio.create_task(_heartbeat()),
        asyncio.create_task(_prune(settings, database)),
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)


async def _maintain_broker(broker: TaskBroker) -> None:
    with suppress(BrokerUnavailableError):  # the consumers log it
        await asyncio.to_thread(broker.warn_if_unsafe)
    while True:
        try:
            await asyncio.to_thread(broker.maintain)
        except BrokerUnavailableError:
            pass
        except Exception:
            # Continue: this may be the only process that requeues messages of dead workers.
            log.exception("maintenance_failed")
        await asyncio.sleep(INTERVAL_SECONDS)


async def _heartbeat() -> None:
    folder = os.environ.get(SHARED_FOLDER)
    beat = Path(folder) / f"{os.getpid()}.heartbeat" if folder else None
    try:
        while True:
            if beat:
                beat.touch()
                # Not the time of day, which can be set.
                os.utime(beat, (time.monotonic(), time.monotonic()))
            due = time.monotonic() + INTERVAL_SECONDS
            await asyncio.sleep(INTERVAL_SECONDS)
            if (late := time.monotonic() - due) > BLOCKED_SECONDS:
                log.warning("event_loop_blocked", seconds=round(late, 1))
    finally:
        if beat:
            beat.unlink(missing_ok=True)


async def _prune(settings: Settings, database: Database) -> None:
    while True:
        # A random time, so that workers that start together do not prune at the same time.
        await asyncio.sleep(random.uniform(0.01, 1) * PRUNE_SECONDS)  # noqa: S311 - not a secret
        try:
            await delete_expired(database.transaction, settings, "TASK_HISTORY_DAYS")
        except (DatabaseUnavailableError, SQLAlchemyError) as error:
            log.warning("pruning_failed", cause=str(error))  # tried again within an hour
