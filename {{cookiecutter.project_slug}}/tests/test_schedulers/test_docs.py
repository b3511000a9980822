"""The examples of docs/scheduler.md work."""

import re
from typing import Any

import pytest
from sqlalchemy import select

from src.core.config import ROOT, Settings
from src.db.session import Database
from src.schedulers.scheduler import build_scheduler
from tests.fixtures.notes import Note

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("documented_notes")
async def test_the_examples_work(database: Database, settings: Settings) -> None:
    names: dict[str, Any] = {}
    for block in BLOCK.findall((ROOT / "docs" / "scheduler.md").read_text("utf-8")):
        exec(block, names)  # noqa: S102 - our own page

    jobs = build_scheduler(names["setup_jobs"]).get_jobs()
    await names["test_create_daily_note"](database, settings)

    assert "create_daily_note" in [job.id for job in jobs]
    async with database.reads() as session:
        assert list(await session.scalars(select(Note.text))) == ["Buy bulbs"]
