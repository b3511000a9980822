"""Leader election: the process that holds the lease runs the jobs.

The lease is a row in PostgreSQL that the leader renews. A leader that is killed, frozen or
disconnected loses the lease after LEASE_SECONDS, and another process acquires it.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex
from time import monotonic

import structlog
from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import Gauge

from src.db.session import DatabaseUnavailableError
from src.domain.scheduler import RunOutcome
from src.schedulers.context import JobContext
from src.schedulers.engine.catch_up import catch_up, due_ticks
from src.schedulers.engine.executor import RUNS, Executor
from src.schedulers.engine.store import RESPONSE_SECONDS, Store

log = structlog.get_logger(__name__)

LEADER = Gauge(
    "scheduler_leader", "1 if this process is the leader, else 0.", multiprocess_mode="livemax"
)
LEASE_SECONDS = 6.0
RENEW_SECONDS = 1.0
POLL_SECONDS = 1.0  # between attempts to acquire the lease
FAILURE_SECONDS = 5.0  # after a failure, so that another process becomes the leader first
# Within these limits, clocks differ by drift and by the duration of a renewal.
_MIN_STEP, _MAX_STEP = timedelta(seconds=-0.1), timedelta(minutes=1)


@dataclass
class Leadership:
    holder: str  # unique per leadership, to tell its runs from those of an earlier one
    expires_at: float  # on the monotonic clock, slightly before the lease in PostgreSQL expires
    time: datetime  # of PostgreSQL: the clock of this machine may be wrong
    measured_at: float  # on the monotonic clock
    is_resumed: bool = False  # the ticks follow the clock

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.expires_at - monotonic())

    def now(self, at: float | None = None) -> datetime:
        """Return PostgreSQL's time, now or at `at`. It is late by up to one round trip."""
        return self.time + timedelta(seconds=(at or monotonic()) - self.measured_at)

    def renew(self, time: datetime, *, started_at: float) -> None:
        """Take the time from a renewal. If PostgreSQL's clock was set, the ticks change."""
        step = time - self.now(started_at)
        if not _MIN_STEP < step < _MAX_STEP:
            log.warning("scheduler_clock_changed", seconds=round(step.total_seconds(), 1))
            self.is_resumed = False
        self.expires_at = started_at + LEASE_SECONDS
        self.time, self.measured_at = time, monotonic()


class Scheduler:
    """Runs the jobs while this process is the leader."""

    def __init__(
        self,
        store: Store,
        context: JobContext,
        build: Callable[[], AsyncIOScheduler],
        drain: float,
    ) -> None:
        self._store = store
        self._context = context
        self._build = build
        self._drain = drain
        self._renewals: set[asyncio.Task[bool]] = set()

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
            time = await tables.acquire_lease(holder, seconds=LEASE_SECONDS)
        return Leadership(holder, expires_at, time, monotonic()) if time else None

    async def _run_as_leader(self, leadership: Leadership) -> None:
        """Run jobs until the lease is lost, or until cancelled.

        When cancelled, let running jobs finish within the drain time.
        """
        executor = Executor(self._store, leadership.holder, self._context, leadership.now)
        renewing = asyncio.create_task(self._renew_until_lost(leadership, executor))
        jobs: Sequence[Job] = []
        try:
            while leadership.seconds_left and not renewing.done():
                if not leadership.is_resumed:
                    jobs = await self._resume(leadership)
                wait = RENEW_SECONDS
                for job in jobs:
                    if ticks := due_ticks(job, leadership.now()):
                        executor.submit(job, ticks)
                    if job.next_run_time is not None:
                        seconds = (job.next_run_time - leadership.now()).total_seconds()
                        wait = min(wait, max(0.0, seconds))
                await asyncio.wait([renewing], timeout=wait)
        finally:
            LEADER.set(0)
            await executor.drain(0 if renewing.done() else self._drain)
            renewing.cancel()
            await asyncio.wait([renewing])
            with suppress(DatabaseUnavailableError):
                async with self._store.repository() as tables:
                    await tables.release_lease(leadership.holder)

    async def _resume(self, leadership: Leadership) -> Sequence[Job]:
        """Continue at the ticks that no leader has claimed. Return the jobs."""
        jobs: Sequence[Job] = self._build().get_jobs()
        leadership.is_resumed = True
        async with self._store.repository(atomic=True) as tables:
            await tables.set_idle_timeout(seconds=RESPONSE_SECONDS)
            if not await tables.lock_lease(leadership.holder):
                leadership.is_resumed = False  # try again, unless the renewal detects this too
                return []
            await tables.replace_jobs(catch_up(jobs, await tables.jobs(), leadership.now()))
            lost = await tables.mark_lost_runs(leadership.holder)
        LEADER.set(1)
        for job in lost:
            RUNS.labels(job, RunOutcome.LOST).inc()
        log.info("leadership_acquired", holder=leadership.holder, lost_runs=len(lost))
        return jobs

    async def _renew_until_lost(self, leadership: Leadership, executor: Executor) -> None:
        """Renew the lease, and cancel running jobs immediately when it is lost."""
        while leadership.seconds_left:
            renewal = asyncio.create_task(self._renew(leadership))
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewals.discard)
            # Not `asyncio.timeout`: cancelling a query on a dead connection takes seconds.
            await asyncio.wait([renewal], timeout=leadership.seconds_left)
            if not renewal.done():
                renewal.cancel()
                break
            if not renewal.result():
                break
            await asyncio.sleep(min(RENEW_SECONDS, leadership.seconds_left))
        log.warning("leadership_lost", holder=leadership.holder)
        executor.cancel()

    async def _renew(self, leadership: Leadership) -> bool:
        """Renew the lease if the database is available. Return False if the lease is lost."""
        started_at = monotonic()
        with suppress(DatabaseUnavailableError):
            async with self._store.repository() as tables:
                time = await tables.renew_lease(leadership.holder, seconds=LEASE_SECONDS)
            if time is None:
                return False
            leadership.renew(time, started_at=started_at)
        return True
