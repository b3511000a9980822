"""Leader election: the process that holds the lease runs the jobs.

The lease is a row in PostgreSQL that the leader renews. A leader that is killed, frozen or
disconnected loses the lease after LEASE_SECONDS, and another process acquires it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from time import monotonic

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import Gauge

from src.db.session import DatabaseUnavailableError
from src.domain.scheduler import RunOutcome
from src.repositories.sql import set_idle_in_transaction_timeout
from src.schedulers.context import JobContext
from src.schedulers.engine.catch_up import catch_up
from src.schedulers.engine.executor import RUNS, RecordingExecutor
from src.schedulers.engine.store import RESPONSE_SECONDS, Store

log = structlog.get_logger(__name__)

LEADER = Gauge(
    "scheduler_leader", "1 if this process is the leader, else 0.", multiprocess_mode="livemax"
)
LEASE_SECONDS = 6.0
RENEW_SECONDS = 1.0
POLL_SECONDS = 1.0  # between attempts to acquire the lease
FAILURE_SECONDS = 5.0  # after a failure, so that another process becomes the leader first


@dataclass
class Leadership:
    holder: str  # unique per leadership, to tell its runs from those of an earlier one
    expires_at: float  # on the monotonic clock, slightly before the lease in PostgreSQL expires

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.expires_at - monotonic())


class Scheduler:
    """Runs the jobs while this process is the leader."""

    def __init__(
        self,
        store: Store,
        context: JobContext,
        build: Callable[[RecordingExecutor], AsyncIOScheduler],
        drain: float,
    ) -> None:
        self._store = store
        self._context = context
        self._build = build
        self._drain = drain
        self._renewals: set[asyncio.Task[bool | None]] = set()

    async def run(self) -> None:
        """Try to become the leader, and run jobs as the leader, until cancelled."""
        while True:
            try:
                leadership = await self._try_acquire()
                if leadership is not None:
                    await self._run_as_leader(leadership)
            except DatabaseUnavailableError:
                pass  # the store has logged it
            except Exception:
                # Without this, scheduling would stop without a log line.
                log.exception("scheduler_failed")
                await asyncio.sleep(FAILURE_SECONDS)
            await asyncio.sleep(POLL_SECONDS)

    async def _try_acquire(self) -> Leadership | None:
        holder = f"{socket.gethostname()}:{os.getpid()}:{token_hex(4)}"
        expires_at = monotonic() + LEASE_SECONDS
        async with self._store.repository() as tables:
            if await tables.current_lease() is not None:  # a read costs less than an upsert
                return None
            is_acquired = await tables.acquire_lease(holder, seconds=LEASE_SECONDS)
        return Leadership(holder, expires_at) if is_acquired else None

    async def _run_as_leader(self, leadership: Leadership) -> None:
        """Run jobs until the lease is lost, or until cancelled.

        When cancelled, let running jobs finish within the drain time.
        """
        executor = RecordingExecutor(self._store, leadership.holder, self._context)
        renewing = asyncio.create_task(self._renew_until_lost(leadership, executor))
        try:
            scheduler = self._build(executor)
            scheduler.start(paused=True)
            try:
                await self._resume(scheduler, leadership)
                await asyncio.wait([renewing])
            finally:
                LEADER.set(0)
                scheduler.pause()
                await executor.drain(0 if renewing.done() else self._drain)
                scheduler.shutdown()
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])  # also lets the event loop process the shutdown
            with suppress(DatabaseUnavailableError):
                async with self._store.repository() as tables:
                    await tables.release_lease(leadership.holder)

    async def _resume(self, scheduler: AsyncIOScheduler, leadership: Leadership) -> None:
        """Continue at the ticks that the previous leader did not claim."""
        async with self._store.repository(atomic=True) as tables:
            await set_idle_in_transaction_timeout(tables.session, seconds=RESPONSE_SECONDS)
            if not await tables.lock_lease(leadership.holder):
                return  # the renewal detects this too
            await tables.replace_jobs(catch_up(scheduler, await tables.jobs()))
            lost = await tables.mark_lost_runs(leadership.holder)
        LEADER.set(1)
        for job in lost:
            RUNS.labels(job, RunOutcome.LOST).inc()
        log.info("leadership_acquired", holder=leadership.holder, lost_runs=len(lost))
        scheduler.resume()

    async def _renew_until_lost(self, leadership: Leadership, executor: RecordingExecutor) -> None:
        """Renew the lease, and cancel running jobs immediately when it is lost."""
        while leadership.seconds_left:
            started_at = monotonic()
            renewal = asyncio.create_task(self._renew(leadership.holder))
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewals.discard)
            # Not `asyncio.timeout`: cancelling a query on a dead connection takes seconds.
            await asyncio.wait([renewal], timeout=leadership.seconds_left)
            if not renewal.done():
                renewal.cancel()
                break
            if renewal.result() is False:
                break
            if renewal.result():
                leadership.expires_at = started_at + LEASE_SECONDS
            await asyncio.sleep(min(RENEW_SECONDS, leadership.seconds_left))
        log.warning("leadership_lost", holder=leadership.holder)
        executor.cancel()

    async def _renew(self, holder: str) -> bool | None:
        """Return whether the lease was renewed, or None if the database is unavailable."""
        try:
            async with self._store.repository() as tables:
                return await tables.renew_lease(holder, seconds=LEASE_SECONDS)
        except DatabaseUnavailableError:
            return None
