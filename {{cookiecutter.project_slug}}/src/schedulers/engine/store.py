"""Access to the scheduler's tables, with time limits and logs of outages."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError

from src.core.failures import Outage
from src.db import Database
from src.db.session import DatabaseUnavailableError
from src.repositories.scheduler import SchedulerRepository

RESPONSE_SECONDS = 2.0


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._outage = Outage("scheduler_unavailable", "scheduler_recovered")

    @asynccontextmanager
    async def repository(self, *, atomic: bool = False) -> AsyncGenerator[SchedulerRepository]:
        """Open a repository. Raises DatabaseUnavailableError after RESPONSE_SECONDS at the latest.

        Each statement commits by itself, unless `atomic` is set: a process that freezes inside a
        transaction keeps its locks and blocks others.
        """
        sessions = self._database.writes.begin if atomic else self._database.reads
        try:
            async with asyncio.timeout(RESPONSE_SECONDS), sessions() as session:
                yield SchedulerRepository(session)
        except (DatabaseUnavailableError, SQLAlchemyError, TimeoutError) as error:
            self._outage.begin(error)
            raise DatabaseUnavailableError(str(error)) from error
        self._outage.end()
