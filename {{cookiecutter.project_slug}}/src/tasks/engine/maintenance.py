"""What a worker process does besides tasks: broker maintenance, heartbeat, pruning."""

import asyncio
import os
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from src.core.config import Settings
from src.db import Database
from src.db.session import DatabaseUnavailableError
from src.repositories.retention import delete_expired
from src.tasks.engine.brokers.base import BrokerUnavailableError, TaskBroker

log = structlog.get_logger(__name__)

HEARTBEATS = "PROMETHEUS_MULTIPROC_DIR"  # the folder that the worker's processes share
INTERVAL_SECONDS = 3.0
PRUNE_SECONDS = 3600.0


@asynccontextmanager
async def open_maintenance(
    settings: Settings, broker: TaskBroker, database: Database
) -> AsyncGenerator[None]:
    jobs = [
        asyncio.create_task(_maintain_broker(broker)),
        asyncio.create_task(_heartbeat()),
        asyncio.create_task(_prune(settings, database)),
    ]
    try:
        yield
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)


async def _maintain_broker(broker: TaskBroker) -> None:
    with suppress(BrokerUnavailableError):  # consumers log it
        await asyncio.to_thread(broker.warn_if_unsafe)
    while True:
        try:
            await asyncio.to_thread(broker.maintain)
        except BrokerUnavailableError:
            pass
        except Exception:
            # Whatever it is: this may be the only process that requeues what dead workers took.
            log.exception("maintenance_failed")
        await asyncio.sleep(INTERVAL_SECONDS)


async def _heartbeat() -> None:
    if folder := os.environ.get(HEARTBEATS):
        beat = Path(folder) / f"{os.getpid()}.heartbeat"
        try:
            while True:
                beat.touch()
                await asyncio.sleep(INTERVAL_SECONDS)
        finally:
            beat.unlink(missing_ok=True)


async def _prune(settings: Settings, database: Database) -> None:
    while True:
        # At random, so that workers that start together do not all prune at once.
        await asyncio.sleep(random.uniform(0.01, 1) * PRUNE_SECONDS)  # noqa: S311 - no secret
        try:
            await delete_expired(database.transaction, settings, "TASK_HISTORY_DAYS")
        except (DatabaseUnavailableError, SQLAlchemyError) as error:
            log.warning("pruning_failed", cause=str(error))  # the next try is within an hour
