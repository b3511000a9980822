"""Leader election: of all processes, the one that holds the lease runs the jobs.

The lease is a row in PostgreSQL that the leader renews. A leader that is killed, frozen or cut off
loses it after LEASE_SECONDS, and another process acquires it.
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
from src.repositories.sql import set_idle_in_transaction_timeout
from src.schedulers.context import JobContext
from src.schedulers.engine.catch_up import catch_up
from src.schedulers.engine.executor import RecordingExecutor
from src.schedulers.engine.store import RESPONSE_SECONDS, Store

log = structlog.get_logger(__name__)

LEADER = Gauge(
    "scheduler_leader", "1 while this process is the leader.", multiprocess_mode="livemax"
)
LEASE_SECONDS = 6.0
RENEW_SECONDS = 1.0
POLL_SECONDS = 1.0  # between attempts to acquire the lease


@dataclass
class Leadership:
    holder: str  # a new name each time: runs of an earlier leadership are not ours
    expires_at: float  # by the monotonic clock, a little before PostgreSQL's lease

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.expires_at - monotonic())


class Scheduler:
    """Runs the jobs whenever this process is the leader."""

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
        """Try to become the leader, again and again, until cancelled."""
        while True:
            try:
                leadership = await self._try_acquire()
                if leadership is not None:
                    await self._lead(leadership)
            except DatabaseUnavailableError:
                pass  # the store has logged it
            except Exception:
                # Without this, scheduling would end in silence.
                log.exception("scheduler_failed")
            await asyncio.sleep(POLL_SECONDS)

    async def _try_acquire(self) -> Leadership | None:
        holder = f"{socket.gethostname()}:{os.getpid()}:{token_hex(4)}"
        expires_at = monotonic() + LEASE_SECONDS
        async with self._store.repository() as tables:
            if await tables.current_lease() is not None:  # cheaper than to try
                return None
            is_acquired = await tables.acquire_lease(holder, seconds=LEASE_SECONDS)
        return Leadership(holder, expires_at) if is_acquired else None

    async def _lead(self, leadership: Leadership) -> None:
        """Run jobs until the lease is lost, or until cancelled; then let running jobs finish."""
        executor = RecordingExecutor(self._store, leadership.holder, self._context)
        scheduler = self._build(executor)
        scheduler.start(paused=True)
        renewing = asyncio.create_task(self._renew_until_lost(leadership, executor))
        try:
            await self._resume(scheduler, leadership)
            await asyncio.wait([renewing])
        finally:
            LEADER.set(0)
            scheduler.pause()
            await executor.drain(0 if renewing.done() else self._drain)
            scheduler.shutdown()
            renewing.cancel()
            await asyncio.wait([renewing])  # the shutdown needs a turn of the loop too
            with suppress(DatabaseUnavailableError):
                async with self._store.repository() as tables:
                    await tables.release_lease(leadership.holder)

    async def _resume(self, scheduler: AsyncIOScheduler, leadership: Leadership) -> None:
        """Continue at the ticks that the last leader has left."""
        async with self._store.repository(atomic=True) as tables:
            await set_idle_in_transaction_timeout(tables.session, seconds=RESPONSE_SECONDS)
            if not await tables.lock_lease(leadership.holder):
                return  # the renewal finds out too
            await tables.replace_jobs(catch_up(scheduler, await tables.jobs()))
            lost = await tables.mark_lost_runs(leadership.holder)
        LEADER.set(1)
        log.info("leadership_acquired", holder=leadership.holder, lost_runs=lost)
        scheduler.resume()

    async def _renew_until_lost(self, leadership: Leadership, executor: RecordingExecutor) -> None:
        """Renew the lease, and cancel the running jobs as soon as it is lost."""
        while leadership.seconds_left:
            asked_at = monotonic()
            renewal = asyncio.create_task(self._renew(leadership.holder))
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewals.discard)
            # Not `asyncio.timeout`: to cancel a query on a dead connection takes seconds more.
            await asyncio.wait([renewal], timeout=leadership.seconds_left)
            if not renewal.done():
                renewal.cancel()
                break
            if renewal.result() is False:
                break
            if renewal.result():
                leadership.expires_at = asked_at + LEASE_SECONDS
            await asyncio.sleep(min(RENEW_SECONDS, leadership.seconds_left))
        log.warning("leadership_lost", holder=leadership.holder)
        executor.cancel()

    async def _renew(self, holder: str) -> bool | None:
        """Return whether the lease is renewed; None if the database is unavailable."""
        try:
            async with self._store.repository() as tables:
                return await tables.renew_lease(holder, seconds=LEASE_SECONDS)
        except DatabaseUnavailableError:
            return None
