from typing import Any

from sqlalchemy import CheckConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin, TimestampMixin, UUIDMixin


class ItemImport(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    """A file of items, and how many of its rows are done: imported or rejected."""

    __retention__ = ("TASK_HISTORY_DAYS", "updated_at")

    # Bytes, since text cannot hold a NUL. Large until it is emptied at the end.
    content: Mapped[bytes] = mapped_column(deferred=True, deferred_raiseload=True)
    total: Mapped[int] = mapped_column()
    done: Mapped[int] = mapped_column(default=0)
    rejected: Mapped[int] = mapped_column(default=0)
    rejections: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)  # the first ones

    __table_args__ = (
        CheckConstraint("rejected BETWEEN 0 AND done AND done <= total", name="counts_in_order"),
    )
