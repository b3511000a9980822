"""APScheduler in any number of processes, of which one leads: see docs/scheduler.md.

Who leads holds a lease in PostgreSQL and renews it. Whoever cannot, be it cut off, frozen or dead,
has lost it a few seconds later, and another takes it. Each tick is claimed in a table before the
job runs, so that a leader that wakes up too late finds it taken.
"""

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from secrets import token_hex
from time import monotonic

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from src.core.config import Settings
from src.db import Database, open_database
from src.schedulers import jobs
from src.schedulers.context import JobContext
from src.schedulers.executor import RecordingExecutor, is_asynchronous
from src.schedulers.ledger import LEASE_SECONDS, LeaseLostError, Ledger, LedgerUnavailableError
from src.schedulers.metrics import LEADER
from src.schedulers.resuming import resume_jobs

log = structlog.get_logger(__name__)

Setup = Callable[[AsyncIOScheduler], None]

POLL_SECONDS = 1.0  # between looks whether the lease is free
RENEW_SECONDS = 1.0
# What running jobs get to finish. With the API's 25 s for requests, below the usual 30.
DRAIN_SECONDS = 4.0
# Its own, lest a busy service keep the scheduler from renewing its lease.
CONNECTIONS = 2
DEFAULTS = {"coalesce": True, "max_instances": 1, "misfire_grace_time": 60}
_MADE_UP_ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class Term:
    """A time of leading; over at `deadline` of the monotonic clock, unless it is extended."""

    holder: str
    deadline: float

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - monotonic())


class Scheduler:
    def __init__(self, ledger: Ledger, context: JobContext, setup: Setup, drain: float) -> None:
        self._ledger = ledger
        self._context = context
        self._setup = setup
        self._drain = drain
        self._stopping = asyncio.Event()
        self._unanswered: set[asyncio.Task[bool]] = set()
        self.is_leading = False

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Lead whenever nobody else does, until stopped."""
        while not self._stopping.is_set():
            try:
                term = await self._win()
                if term is not None:
                    await self._lead(term)
            except LedgerUnavailableError:
                pass  # the ledger has said so, once
            except Exception:
                # To end here would be to stop scheduling, in silence.
                log.exception("scheduler_failed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), POLL_SECONDS)

    async def _win(self) -> Term | None:
        # A name for this term alone: what an earlier one left running is not ours.
        holder = f"{socket.gethostname()}:{os.getpid()}:{token_hex(4)}"
        deadline = monotonic() + LEASE_SECONDS  # before the server's, which begins later
        return Term(holder, deadline) if await self._ledger.take_lease(holder) else None

    async def _lead(self, term: Term) -> None:
        executor = RecordingExecutor(self._ledger, term.holder, self._context)
        scheduler = build_scheduler(self._setup, executor)
        keeping = asyncio.create_task(self._keep(term, executor))
        self.is_leading = True
        try:
            await self._resume(scheduler, term)
            await self._until_over(keeping)
        finally:
            LEADER.set(0)
            scheduler.pause()
            await executor.drain(0 if keeping.done() else self._drain)
            scheduler.shutdown()
            keeping.cancel()
            await asyncio.wait([keeping])  # a turn of the loop, which the shutdown takes too
            await self._release(term)
            self.is_leading = False

    async def _resume(self, scheduler: AsyncIOScheduler, term: Term) -> None:
        scheduler.start(paused=True)
        try:
            lost = await self._ledger.resume(term.holder, partial(resume_jobs, scheduler))
        except LeaseLostError:
            return  # `_keep` finds out as well
        LEADER.set(1)
        log.info("scheduler_leads", holder=term.holder, lost_runs=lost)
        scheduler.resume()

    async def _until_over(self, keeping: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    async def _keep(self, term: Term, executor: RecordingExecutor) -> None:
        """Renew the lease; return as soon as it is lost, with the jobs cancelled."""
        while term.seconds_left:
            asked = monotonic()
            renewal = asyncio.create_task(self._ledger.renew_lease(term.holder))
            # Not a time-out around it: to give up a connection that hangs takes seconds more.
            await asyncio.wait([renewal], timeout=term.seconds_left)
            if not renewal.done():
                self._abandon(renewal)
                break
            try:
                if not renewal.result():
                    break
                term.deadline = asked + LEASE_SECONDS
            except LedgerUnavailableError:
                pass  # there is time left to try again
            await asyncio.sleep(min(RENEW_SECONDS, term.seconds_left))
        log.warning("scheduler_lost_the_lead", holder=term.holder)
        executor.cancel()

    def _abandon(self, renewal: asyncio.Task[bool]) -> None:
        renewal.cancel()
        self._unanswered.add(renewal)
        renewal.add_done_callback(self._unanswered.discard)

    async def _release(self, term: Term) -> None:
        """Let another lead at once, rather than when the lease expires."""
        with suppress(LedgerUnavailableError):
            await self._ledger.release_lease(term.holder)


def build_scheduler(setup: Setup, executor: RecordingExecutor | None = None) -> AsyncIOScheduler:
    """Make an APScheduler with the jobs of `setup`.

    Raises TypeError for a job that is not `async def`, ValueError for one without an `id`.
    """
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # it tells of each step
    executors = {} if executor is None else {"default": executor}
    scheduler = AsyncIOScheduler(executors=executors, job_defaults=DEFAULTS, timezone=UTC)
    setup(scheduler)
    for job in scheduler.get_jobs():
        if not is_asynchronous(job):
            raise TypeError(f"The job {job.id} must be an `async def`.")
        if _MADE_UP_ID.fullmatch(job.id):
            raise ValueError(f"The job {job.name} needs an `id`, the same in every process.")
        job.modify(max_instances=1)
    return scheduler


@asynccontextmanager
async def open_scheduler(
    settings: Settings,
    database: Database,
    *,
    setup: Setup = jobs.setup_jobs,
    drain: float = DRAIN_SECONDS,
) -> AsyncGenerator[Scheduler]:
    """Schedule in the background, if no other process does, until the block ends."""
    build_scheduler(setup)  # what is wrong with a job shall be known now, not when it leads
    async with open_database(settings.database_url, pool_size=CONNECTIONS) as own:
        context = JobContext(settings, database)
        scheduler = Scheduler(Ledger(own), context, setup, drain)
        running = asyncio.create_task(scheduler.run())
        try:
            yield scheduler
        finally:
            scheduler.stop()
            if not scheduler.is_leading:
                running.cancel()  # it may wait for a database that is away
            await asyncio.wait([running])
