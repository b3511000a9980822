"""The scheduler's tables. All times are from PostgreSQL, since clocks of processes may differ."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime, delete, func, literal, null, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from src.db.models.scheduler import SchedulerJob, SchedulerLease, SchedulerRun
from src.domain.scheduler import RunOutcome

_LEASE_ID = 1
# Not `now()`: that is the start of the transaction, which may have waited for a lock.
_NOW = func.clock_timestamp(type_=DateTime(timezone=True))

# A lease that expires later is from before PostgreSQL's clock was set back.
_IS_HELD = SchedulerLease.expires_at.between(_NOW, _NOW + timedelta(minutes=5))


class SchedulerRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def current_lease(self) -> SchedulerLease | None:
        """Return the lease, unless it has expired."""
        return await self.session.scalar(select(SchedulerLease).where(_IS_HELD))

    async def acquire_lease(self, holder: str, *, seconds: float) -> datetime | None:
        """Acquire the lease if it is free. Return the time, or None.

        Of several concurrent attempts, one succeeds.
        """
        expires = _NOW + timedelta(seconds=seconds)
        acquired = (
            insert(SchedulerLease)
            .values(id=_LEASE_ID, holder=holder, acquired_at=_NOW, expires_at=expires)
            .on_conflict_do_update(
                index_elements=[SchedulerLease.id],
                set_={"holder": holder, "acquired_at": _NOW, "expires_at": expires},
                where=~_IS_HELD,
            )
            .returning(_NOW)
        )
        return await self.session.scalar(acquired)

    async def renew_lease(self, holder: str, *, seconds: float) -> datetime | None:
        """Extend the lease. Return the time, or None if the lease has another holder.

        It may have expired, since PostgreSQL's clock can be set.
        """
        renewed = (
            update(SchedulerLease)
            .where(SchedulerLease.holder == holder)
            .values(expires_at=_NOW + timedelta(seconds=seconds))
            .returning(_NOW)
        )
        return await self.session.scalar(renewed)

    async def set_idle_timeout(self, *, seconds: float) -> None:
        """Let PostgreSQL abort this transaction if it is idle for longer, as in a frozen process."""
        setting = "idle_in_transaction_session_timeout"
        await self.session.execute(select(func.set_config(setting, f"{seconds:.0f}s", True)))

    async def lock_lease(self, holder: str) -> bool:
        """Lock the lease until the transaction ends. Return False if `holder` has lost it."""
        held = select(SchedulerLease.id).where(_is_held_by(holder)).with_for_update()
        return await self.session.scalar(held) is not None

    async def release_lease(self, holder: str) -> None:
        await self.session.execute(delete(SchedulerLease).where(SchedulerLease.holder == holder))

    async def claim(
        self,
        job: str,
        tick: datetime,
        holder: str,
        *,
        next_tick: datetime | None,
        outcome: RunOutcome,
    ) -> bool:
        """Claim the tick if `holder` has the lease and no other holder has claimed the tick.

        The same holder may repeat a claim until the run has finished, since the response to the
        first may have been lost. It is one statement: a process that freezes inside a transaction
        would keep its locks.
        """
        row = select(
            literal(job),
            literal(tick, DateTime(timezone=True)),
            literal(holder),
            literal(outcome, SchedulerRun.outcome.type),
            _NOW,
            null() if outcome is RunOutcome.RUNNING else _NOW,
        ).where(select(SchedulerLease.id).where(_is_held_by(holder)).exists())
        claimed = (
            insert(SchedulerRun)
            .from_select(["job", "tick", "holder", "outcome", "started_at", "finished_at"], row)
            .on_conflict_do_update(
                index_elements=[SchedulerRun.job, SchedulerRun.tick],
                set_={"holder": holder},
                where=(SchedulerRun.holder == holder) & SchedulerRun.finished_at.is_(None),
            )
            .returning(SchedulerRun.job)
            .cte("claimed")
        )
        advanced = (
            update(SchedulerJob)
            .where(SchedulerJob.id.in_(select(claimed.c.job)))
            .values(next_tick=next_tick)
            .cte("advanced")
        )
        return await self.session.scalar(select(claimed.c.job).add_cte(advanced)) is not None

    async def finish(
        self, job: str, tick: datetime, holder: str, outcome: RunOutcome, error: str | None
    ) -> None:
        """Record the outcome, even if another leader has marked the run as lost."""
        await self.session.execute(
            update(SchedulerRun)
            .where(SchedulerRun.job == job, SchedulerRun.tick == tick)
            .where(SchedulerRun.holder == holder)
            .values(outcome=outcome, finished_at=_NOW, error=error)
        )

    async def mark_lost_runs(self, holder: str) -> Sequence[str]:
        """Mark unfinished runs of other leaders as lost. Return the job of each."""
        lost = (
            update(SchedulerRun)
            .where(SchedulerRun.outcome == RunOutcome.RUNNING, SchedulerRun.holder != holder)
            .values(outcome=RunOutcome.LOST, finished_at=_NOW)
            .returning(SchedulerRun.job)
        )
        return (await self.session.scalars(lost)).all()

    async def jobs(self) -> Sequence[SchedulerJob]:
        return (await self.session.scalars(select(SchedulerJob).order_by(SchedulerJob.id))).all()

    async def replace_jobs(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        ids = [job["id"] for job in jobs]
        await self.session.execute(delete(SchedulerJob).where(SchedulerJob.id.not_in(ids)))
        if jobs:
            new = insert(SchedulerJob)
            changed = {"trigger": new.excluded.trigger, "next_tick": new.excluded.next_tick}
            await self.session.execute(
                new.on_conflict_do_update(index_elements=[SchedulerJob.id], set_=changed),
                list(jobs),
            )

    async def last_runs(self, *, limit: int) -> Sequence[SchedulerRun]:
        """Return the last `limit` runs of each job, newest first."""
        newest = (
            select(SchedulerRun)
            .where(SchedulerRun.job == SchedulerJob.id)
            .order_by(SchedulerRun.tick.desc())
            .limit(limit)
            .lateral()
        )
        run = aliased(SchedulerRun, newest)
        found = select(run).select_from(SchedulerJob).join(newest, true()).order_by(run.tick.desc())
        return (await self.session.scalars(found)).all()


def _is_held_by(holder: str) -> ColumnElement[bool]:
    return (SchedulerLease.holder == holder) & _IS_HELD
