"""Jobs that leave the work to the task queue: in a worker it may take long, and is tried again."""

from datetime import date

from sqlalchemy.ext.asyncio import AsyncSession

from src.tasks import enqueue
from src.tasks.jobs import make_item_report


async def send_item_report(db: AsyncSession, day: date) -> None:
    await enqueue(db, make_item_report, day.isoformat())
