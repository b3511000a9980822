from datetime import date, datetime

from sqlalchemy import DateTime
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from src.db.base import Base, TableNameMixin


class ItemReport(Base, TableNameMixin):
    """A day, in UTC, as the table of items told it when the report was made.

    The table knows when an item was made and when it was last changed; of deleted ones it knows
    nothing.
    """

    day: Mapped[date] = mapped_column(primary_key=True)
    created: Mapped[int] = mapped_column()
    changed: Mapped[int] = mapped_column()  # last, and on that day; to archive is to change
    archived: Mapped[int] = mapped_column()
    totals: Mapped[dict[str, int]] = mapped_column(JSONB)  # by status, when it was made
    made_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
