"""The examples of docs/scheduler.md are true."""

import re
from typing import Any

from sqlalchemy import select

from src.core.config import ROOT, Settings
from src.db.models.item import Item
from src.db.session import Database
from src.schedulers.scheduler import build_scheduler

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


async def test_the_examples_work(database: Database, settings: Settings) -> None:
    names: dict[str, Any] = {}
    for block in BLOCK.findall((ROOT / "docs" / "scheduler.md").read_text("utf-8")):
        exec(block, names)  # noqa: S102 - our own page

    (job,) = build_scheduler(names["setup_jobs"]).get_jobs()
    await names["test_create_daily_item"](database, settings)

    assert job.id == "create_daily_item"
    async with database.reads() as session:
        assert list(await session.scalars(select(Item.name))) == ["Lamp of the day"]
