"""The tables of the task queue: outbox, tracked tasks and redelivered messages."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Identity, Index, SmallInteger, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin, UUIDMixin
from src.domain.task import TaskStatus


class OutboxMessage(Base, TableNameMixin):
    """A message that the relay has not yet sent to the broker."""

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    body: Mapped[bytes] = mapped_column()  # the encoded message
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_outbox_message_due_at_id", "due_at", "id"),)


class Task(Base, UUIDMixin, TableNameMixin):
    """A tracked task. Its primary key is the message id."""

    __retention__ = ("TASK_HISTORY_DAYS", "finished_at")

    actor: Mapped[str] = mapped_column(Text)
    status: Mapped[TaskStatus] = mapped_column(default=TaskStatus.QUEUED)
    attempts: Mapped[int] = mapped_column(SmallInteger, default=0)
    done: Mapped[int | None] = mapped_column()  # of `total`, in a unit that the task chooses
    total: Mapped[int | None] = mapped_column()
    result: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_task_finished_at", "finished_at"),)


class RedeliveredMessage(Base, TableNameMixin):
    """A message that may have killed its worker, and the number of its starts since then."""

    __retention__ = ("TASK_HISTORY_DAYS", "started_at")

    message_id: Mapped[str] = mapped_column(Text, primary_key=True)
    starts: Mapped[int] = mapped_column(SmallInteger)
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_redelivered_message_started_at", "started_at"),)
