"""The scheduler's books in PostgreSQL, which may be away: then each method says so, and soon."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from src.db import Database
from src.db.models.scheduler import SchedulerJob
from src.db.session import DatabaseUnavailableError
from src.domain.scheduler import RunOutcome
from src.repositories.scheduler import SchedulerRepository
from src.repositories.sql import set_idle_in_transaction_timeout

log = structlog.get_logger(__name__)

LEASE_SECONDS = 6.0
ANSWER_SECONDS = 2.0

Plan = Callable[[Sequence[SchedulerJob]], Sequence[Mapping[str, Any]]]


class LedgerUnavailableError(Exception):
    """The books cannot be read or written just now."""


class LeaseLostError(Exception):
    """Another process leads, or may."""


class Ledger:
    """Writes, but for `resume`, in single statements that commit themselves.

    A process may freeze between any two steps: in a transaction it would keep its locks, and those
    who are to take over would wait for them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_away = False

    async def take_lease(self, holder: str) -> bool:
        """Take the lease if it is free. Only to look costs less, and is all that most do."""
        async with self._books(self._database.reads()) as books:
            if await books.current_lease() is not None:
                return False
            return await books.take_lease(holder, seconds=LEASE_SECONDS)

    async def renew_lease(self, holder: str) -> bool:
        async with self._books(self._database.reads()) as books:
            return await books.renew_lease(holder, seconds=LEASE_SECONDS)

    async def release_lease(self, holder: str) -> None:
        async with self._books(self._database.reads()) as books:
            await books.release_lease(holder)

    async def resume(self, holder: str, plan: Plan) -> int:
        """Write down the jobs that `plan` makes of the known ones; give up what others left.

        Returns how many runs were given up. Raises LeaseLostError.
        """
        async with self._books(self._database.writes()) as books, books.session.begin():
            await set_idle_in_transaction_timeout(books.session, seconds=ANSWER_SECONDS)
            if not await books.lock_lease(holder):
                raise LeaseLostError
            await books.replace_jobs(plan(await books.jobs()))
            return await books.give_up_runs_of_others(holder)

    async def claim(
        self,
        job: str,
        tick: datetime,
        holder: str,
        *,
        next_tick: datetime | None,
        outcome: RunOutcome = RunOutcome.RUNNING,
    ) -> bool:
        async with self._books(self._database.reads()) as books:
            return await books.claim(job, tick, holder, next_tick=next_tick, outcome=outcome)

    async def finish(
        self, job: str, tick: datetime, holder: str, outcome: RunOutcome, error: str | None
    ) -> None:
        async with self._books(self._database.reads()) as books:
            await books.finish(job, tick, holder, outcome, error)

    @asynccontextmanager
    async def _books(self, session: AsyncSession) -> AsyncGenerator[SchedulerRepository]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS), session:
                yield SchedulerRepository(session)
        except (DatabaseUnavailableError, SQLAlchemyError, TimeoutError) as error:
            self._note_outage(error)
            raise LedgerUnavailableError from error
        if self._is_away:
            self._is_away = False
            log.info("scheduler_goes_on")

    def _note_outage(self, error: Exception) -> None:
        """Say it once: those who wait for PostgreSQL ask every second."""
        if not self._is_away:
            self._is_away = True
            log.warning("scheduler_waits_for_database", cause=str(error) or "no answer in time")
