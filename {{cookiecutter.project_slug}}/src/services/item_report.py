from collections.abc import Sequence
from datetime import UTC, date, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.item_report import ItemReport
from src.domain.item_report import ItemReportNotFoundError, ensure_begun
from src.repositories.item_report import ItemReportRepository


class ItemReportService:
    @staticmethod
    async def make(db: AsyncSession, day: date) -> ItemReport:
        """Report on a day in UTC; once more, if it has been done before.

        Raises ItemReportTooEarlyError.
        """
        ensure_begun(day, today=datetime.now(UTC).date())
        return await ItemReportRepository(db).make(day)

    @staticmethod
    async def get(db: AsyncSession, day: date) -> ItemReport:
        """Raises ItemReportNotFoundError."""
        report = await ItemReportRepository(db).get(day)
        if report is None:
            raise ItemReportNotFoundError(day)
        return report

    @staticmethod
    async def newest(db: AsyncSession, *, limit: int) -> Sequence[ItemReport]:
        """Return the reports on the last days that have one, the latest day first."""
        return await ItemReportRepository(db).newest(limit=limit)
