"""How APScheduler's jobs are run here: claimed first, recorded, and never two at once."""

import asyncio
import inspect
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import structlog
from apscheduler.executors.base import BaseExecutor, MaxInstancesReachedError
from apscheduler.job import Job

from src.domain.scheduler import RunOutcome
from src.schedulers.context import JobContext, use_context
from src.schedulers.ledger import Ledger, LedgerUnavailableError
from src.schedulers.metrics import DURATION, RUNS

log = structlog.get_logger(__name__)

RETRY_SECONDS = 0.5
RECORD_SECONDS = 2.5  # what those that are cancelled have to say so
LONGEST_ERROR = 2000  # characters


class RecordingExecutor(BaseExecutor):  # type: ignore[misc]  # APScheduler has no types
    """Runs jobs for as long as `holder` leads."""

    def __init__(self, ledger: Ledger, holder: str, context: JobContext) -> None:
        super().__init__()
        self._ledger = ledger
        self._holder = holder
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()

    def submit_job(self, job: Job, run_times: Sequence[datetime]) -> None:
        try:
            super().submit_job(job, run_times)
        except MaxInstancesReachedError:
            self._spawn(self._claim_all(job, run_times, RunOutcome.SKIPPED))
            raise  # APScheduler says it in the log

    def _do_submit_job(self, job: Job, run_times: Sequence[datetime]) -> None:
        task = self._spawn(self._run_all(job, run_times))
        task.add_done_callback(lambda _: self._run_job_success(job.id, []))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        for task in self._tasks:
            if not task.cancelling():  # a second time would keep it from recording its end
                task.cancel()

    async def drain(self, seconds: float) -> None:
        """Let what runs finish, for so long; then cancel it."""
        if self._tasks and seconds > 0:
            await asyncio.wait(self._tasks, timeout=seconds)
        self.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=RECORD_SECONDS)

    async def _run_all(self, job: Job, ticks: Sequence[datetime]) -> None:
        for tick, following in _with_following(job, ticks):
            if await self._claim(job, tick, following, RunOutcome.RUNNING):
                await self._run(job, tick)

    async def _claim_all(self, job: Job, ticks: Sequence[datetime], outcome: RunOutcome) -> None:
        for tick, following in _with_following(job, ticks):
            await self._claim(job, tick, following, outcome)

    async def _claim(
        self, job: Job, tick: datetime, following: datetime | None, outcome: RunOutcome
    ) -> bool:
        """Return whether to run it. While the database is away, try again until the lead is lost."""
        while True:
            if _is_too_late(job, tick):
                outcome = RunOutcome.MISSED
            try:
                claimed = await self._ledger.claim(
                    job.id, tick, self._holder, next_tick=following, outcome=outcome
                )
            except LedgerUnavailableError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not claimed:
                return False
            if outcome is RunOutcome.MISSED:
                log.warning("job_missed", job=job.id, tick=tick.isoformat())
            if outcome is not RunOutcome.RUNNING:
                RUNS.labels(job.id, outcome).inc()
            return outcome is RunOutcome.RUNNING

    async def _run(self, job: Job, tick: datetime) -> None:
        started = perf_counter()
        with structlog.contextvars.bound_contextvars(job=job.id, tick=tick.isoformat()):
            outcome, error = await self._outcome(job, tick)
            RUNS.labels(job.id, outcome).inc()
            DURATION.labels(job.id).observe(perf_counter() - started)
            await self._record(job, tick, outcome, error)
        if outcome is RunOutcome.CANCELLED:
            raise asyncio.CancelledError

    async def _outcome(self, job: Job, tick: datetime) -> tuple[RunOutcome, str | None]:
        try:
            with use_context(replace(self._context, tick=tick)):
                await job.func(*job.args, **job.kwargs)
        except asyncio.CancelledError:
            log.warning("job_cancelled")
            return RunOutcome.CANCELLED, None
        except (Exception, SystemExit) as error:
            # Also SystemExit: one job must not end the process, and the others with it.
            log.exception("job_failed")
            return RunOutcome.FAILED, _described(error)
        return RunOutcome.SUCCEEDED, None

    async def _record(
        self, job: Job, tick: datetime, outcome: RunOutcome, error: str | None
    ) -> None:
        while True:
            try:
                await self._ledger.finish(job.id, tick, self._holder, outcome, error)
            except LedgerUnavailableError:
                if outcome is RunOutcome.CANCELLED:
                    return  # the next leader gives it up
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return


def is_asynchronous(job: Job) -> bool:
    return inspect.iscoroutinefunction(job.func)


def _with_following(job: Job, ticks: Sequence[datetime]) -> list[tuple[datetime, datetime | None]]:
    """Pair each tick with the one after it. APScheduler has moved the job on by now, or removed it."""
    last: datetime | None = job.next_run_time if job.next_run_time > ticks[-1] else None
    return list(zip(ticks, [*ticks[1:], last], strict=True))


def _is_too_late(job: Job, tick: datetime) -> bool:
    if job.misfire_grace_time is None:
        return False
    return datetime.now(UTC) - tick > timedelta(seconds=job.misfire_grace_time)


def _described(error: BaseException) -> str:
    text = f"{type(error).__qualname__}: {error}"[:LONGEST_ERROR]
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
