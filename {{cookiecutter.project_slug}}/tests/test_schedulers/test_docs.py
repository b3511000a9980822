"""The snippets of docs/scheduler.md run."""

from datetime import datetime
from typing import Any

from src.core.config import Settings
from src.db.session import Database
from src.schedulers.scheduler import build_scheduler
from tests.fixtures.pages import python_blocks


async def test_snippets_run(database: Database, settings: Settings) -> None:
    sent: list[datetime | None] = []

    class DigestService:  # what the page leaves to the reader
        @staticmethod
        async def send(_db: object, *, until: datetime | None) -> None:
            sent.append(until)

    names: dict[str, Any] = {"DigestService": DigestService}
    for block in python_blocks("scheduler.md"):
        exec(block, names)  # noqa: S102 - our own page
    jobs = build_scheduler(names["setup_jobs"]).get_jobs()
    await names["test_send_digest"](database, settings)

    assert "send_digest" in [job.id for job in jobs]
    assert [isinstance(until, datetime) for until in sent] == [True]
