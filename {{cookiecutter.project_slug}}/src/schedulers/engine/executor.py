"""Runs jobs: claims each tick before the run, and records the outcome after it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from time import perf_counter

import structlog
from apscheduler.job import Job
from prometheus_client import Counter, Histogram

from src.core.failures import describe
from src.core.trace import principal_id
from src.db.session import DatabaseUnavailableError
from src.domain.scheduler import RunOutcome
from src.schedulers.context import JobContext, use_context
from src.schedulers.engine.store import Store

log = structlog.get_logger(__name__)

RUNS = Counter("scheduler_runs_total", "Number of ticks, by outcome.", ["job", "outcome"])
DURATION = Histogram("scheduler_run_duration_seconds", "Duration of runs in seconds.", ["job"])
RETRY_SECONDS = 0.5
RECORD_SECONDS = 2.5  # time for cancelled runs to record their outcome


class Executor:
    """Runs jobs on behalf of `holder`, which has the lease."""

    def __init__(
        self, store: Store, holder: str, context: JobContext, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._holder = holder
        self._context = context
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: set[str] = set()

    def submit(self, job: Job, ticks: Sequence[datetime]) -> None:
        """Run the job, or record the ticks as skipped if the previous run has not finished."""
        outcome = RunOutcome.SKIPPED if job.id in self._running else RunOutcome.RUNNING
        task = asyncio.create_task(self._run_ticks(job, ticks, outcome))
        if outcome is RunOutcome.RUNNING:
            task.add_done_callback(lambda _: self._running.discard(job.id))
            self._running.add(job.id)
        task.add_done_callback(self._tasks.discard)
        self._tasks.add(task)

    async def _run_ticks(self, job: Job, ticks: Sequence[datetime], planned: RunOutcome) -> None:
        """Claim each tick, retrying until the database responds, and run the job for it."""
        for tick, next_tick in zip(ticks, [*ticks[1:], job.next_run_time], strict=True):
            outcome, is_claimed = planned, None
            while is_claimed is None:
                grace = job.misfire_grace_time
                if grace is not None and self._clock() - tick > timedelta(seconds=grace):
                    outcome = RunOutcome.MISSED
                with suppress(DatabaseUnavailableError):
                    async with self._store.repository() as tables:
                        is_claimed = await tables.claim(
                            job.id, tick, self._holder, next_tick=next_tick, outcome=outcome
                        )
                if is_claimed is None:
                    await asyncio.sleep(RETRY_SECONDS)
            if is_claimed and outcome is RunOutcome.RUNNING:
                await self._run(job, tick)
            elif is_claimed:
                event = "job_missed" if outcome is RunOutcome.MISSED else "job_skipped"
                log.warning(event, job=job.id, tick=tick.isoformat())
                RUNS.labels(job.id, outcome).inc()

    async def _run(self, job: Job, tick: datetime) -> None:
        """Run the job, and record the outcome, retrying until the database responds."""
        started, outcome, error = perf_counter(), RunOutcome.SUCCEEDED, None
        principal_id.set(f"job:{job.id}")  # of this asyncio task
        with (
            structlog.contextvars.bound_contextvars(job=job.id, tick=tick.isoformat()),
            use_context(replace(self._context, tick=tick)),
        ):
            try:
                await job.func(*job.args, **job.kwargs)
            except BaseException as raised:
                # For example SystemExit. One job must not stop the process and its other jobs.
                task = asyncio.current_task()
                if isinstance(raised, asyncio.CancelledError) and task and task.cancelling():
                    log.warning("job_cancelled")
                    outcome = RunOutcome.CANCELLED
                else:
                    log.exception("job_failed")
                    outcome, error = RunOutcome.FAILED, describe(raised)
        RUNS.labels(job.id, outcome).inc()
        DURATION.labels(job.id).observe(perf_counter() - started)
        is_recorded = False
        while not is_recorded:
            try:
                async with self._store.repository() as tables:
                    await tables.finish(job.id, tick, self._holder, outcome, error)
                is_recorded = True
            except DatabaseUnavailableError:
                if outcome is RunOutcome.CANCELLED:
                    break  # the process is stopping; the next leader marks the run as lost
                await asyncio.sleep(RETRY_SECONDS)
        if outcome is RunOutcome.CANCELLED:
            raise asyncio.CancelledError

    def cancel(self) -> None:
        for task in self._tasks:
            if not task.cancelling():  # a second cancellation would interrupt recording the outcome
                task.cancel()

    async def drain(self, seconds: float) -> None:
        """Wait for runs to finish, then cancel the others."""
        if self._tasks and seconds > 0:
            await asyncio.wait(self._tasks, timeout=seconds)
        self.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=RECORD_SECONDS)
