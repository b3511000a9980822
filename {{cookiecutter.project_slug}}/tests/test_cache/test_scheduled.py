"""Writes in scheduled jobs invalidate the cache."""

from datetime import UTC, datetime

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from pydantic import SecretStr
from sqlalchemy import URL, select

from src.cache import Cache, MemoryBackend, cached, use_cache
from src.core.config import Settings
from src.db.session import Database
from src.schedulers.context import transaction
from src.schedulers.scheduler import open_scheduler
from tests.fixtures.notes import Note
from tests.test_schedulers.conftest import runs_of


async def test_write_in_a_job_invalidates_the_cache(
    committing_url: URL, committing_database: Database
) -> None:
    @cached(key="texts", tags=["notes"])
    async def texts() -> list[str]:
        async with committing_database.reads() as session:
            return list(await session.scalars(select(Note.text)))

    async def write() -> None:
        async with transaction() as db:
            db.add(Note(text="new"))

    def setup(scheduler: AsyncIOScheduler) -> None:
        now = datetime.now(UTC)
        scheduler.add_job(write, "interval", hours=1, id="job", next_run_time=now)

    url = SecretStr(committing_url.render_as_string(hide_password=False))
    with use_cache(Cache(MemoryBackend(), ttl=60)):
        assert await texts() == []
        async with open_scheduler(
            Settings(ENV="test", DATABASE_URL=url), committing_database, setup=setup
        ):
            await runs_of(committing_database)
        assert await texts() == ["new"]
