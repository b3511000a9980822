"""Tables that scheduler processes share: the lease, the jobs and the runs."""

from datetime import datetime

from sqlalchemy import Index, SmallInteger, Text
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin
from src.domain.scheduler import RunOutcome


class SchedulerLease(Base, TableNameMixin):
    """The leader's lease. The table has one row; times are from PostgreSQL's clock."""

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    holder: Mapped[str] = mapped_column(Text)
    acquired_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class SchedulerJob(Base, TableNameMixin):
    """A job of `setup_jobs()` and its first unclaimed tick, or null if it has no further tick."""

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    trigger: Mapped[str] = mapped_column(Text)
    next_tick: Mapped[datetime | None]


class SchedulerRun(Base, TableNameMixin):
    """A claimed tick. The primary key makes a second claim fail."""

    job: Mapped[str] = mapped_column(Text, primary_key=True)
    tick: Mapped[datetime] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(Text)
    outcome: Mapped[RunOutcome]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)

    __retention__ = ("SCHEDULER_HISTORY_DAYS", "tick")
    __table_args__ = (Index("ix_scheduler_run_tick", "tick"),)
