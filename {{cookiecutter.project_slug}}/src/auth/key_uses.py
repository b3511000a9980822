"""Records when API keys were last used: in the background, so that no request waits or fails."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import Context

import structlog
from sqlalchemy.exc import SQLAlchemyError

from src.db import Database, DatabaseUnavailableError
from src.repositories.api_key import ApiKeyRepository

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 1.0
# After a failure. A database that is read-only would otherwise cost each request an attempt, and the
# pool its connections, because that is also how a server behaves that is no longer the primary.
PAUSE_SECONDS = 60.0

RecordUse = Callable[[str], None]


class KeyUses:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids: set[str] = set()
        self._paused_until = 0.0
        self.task: asyncio.Task[None] | None = None  # at most one, so it uses one connection

    def record(self, key_id: str) -> None:
        if time.monotonic() < self._paused_until:
            return
        self._ids.add(key_id)
        if self.task is None:
            self.task = asyncio.create_task(self._write(), context=Context())

    async def _write(self) -> None:
        try:
            while self._ids:
                ids, self._ids = self._ids, set()
                # Without a transaction, a process that freezes here keeps no lock.
                async with self._database.reads() as session:
                    await ApiKeyRepository(session).record_uses(sorted(ids))
        except (DatabaseUnavailableError, SQLAlchemyError) as error:
            # A later request with the key tries again.
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            log.warning("api_key_use_not_recorded", cause=repr(error))
        finally:
            self.task = None


@asynccontextmanager
async def record_key_uses(database: Database) -> AsyncGenerator[RecordUse]:
    uses = KeyUses(database)
    try:
        yield uses.record
    finally:
        if uses.task is not None:
            await asyncio.wait([uses.task], timeout=CLOSE_SECONDS)
        if uses.task is not None:
            uses.task.cancel()
