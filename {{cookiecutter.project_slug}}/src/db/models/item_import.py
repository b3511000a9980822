from typing import Any

from sqlalchemy import CheckConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin, TimestampMixin, UUIDMixin


class ItemImport(Base, UUIDMixin, TableNameMixin, TimestampMixin):
    """A CSV file of items and the progress of its import."""

    __retention__ = ("TASK_HISTORY_DAYS", "updated_at")

    # Bytes, because a text column cannot store NUL. Emptied when the import has finished.
    content: Mapped[bytes] = mapped_column(deferred=True, deferred_raiseload=True)
    total: Mapped[int] = mapped_column()
    done: Mapped[int] = mapped_column(default=0)
    rejected: Mapped[int] = mapped_column(default=0)
    # The first MAX_REJECTIONS of them.
    rejections: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)

    __table_args__ = (
        CheckConstraint("rejected BETWEEN 0 AND done AND done <= total", name="counts_in_order"),
    )
