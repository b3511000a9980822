"""`GET /api/v1/scheduler/jobs`."""

from datetime import UTC, datetime, timedelta

from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import SecretStr

from src.core.config import Settings
from src.db.models.scheduler import SchedulerJob, SchedulerRun
from src.db.session import Database
from src.domain.scheduler import RunOutcome
from src.repositories.scheduler import SchedulerRepository
from tests.fixtures.client import connect
from tests.fixtures.environment import API

JOBS = f"{API}/scheduler/jobs"
KEY = "k" * 32
NOW = datetime.now(UTC)


async def test_jobs_are_listed_with_their_last_runs(
    client: AsyncClient, database: Database
) -> None:
    """Also by a process that does not run the scheduler."""
    failed = {"outcome": RunOutcome.FAILED, "error": "ValueError: no", "holder": "x"}
    async with database.transaction() as db:
        await SchedulerRepository(db).acquire_lease("web-1:7:1f3c9a52", seconds=60)
        db.add(SchedulerJob(id="a", trigger="interval[1:00:00]", next_tick=NOW))
        db.add(SchedulerJob(id="b", trigger="date", next_tick=None))
        for hours in range(1, 4):
            tick = NOW - timedelta(hours=hours)
            db.add(SchedulerRun(job="a", tick=tick, started_at=NOW, **failed))

    body = (await client.get(JOBS, params={"runs": 2})).json()

    assert body["leader"]["holder"] == "web-1:7:1f3c9a52"
    first, second = body["jobs"]
    assert datetime.fromisoformat(first["next_tick"]) == NOW
    ticks = [datetime.fromisoformat(run["tick"]) for run in first["runs"]]
    assert ticks == [NOW - timedelta(hours=1), NOW - timedelta(hours=2)]
    assert (first["runs"][0]["outcome"], first["runs"][0]["error"]) == ("failed", "ValueError: no")
    assert (second["id"], second["next_tick"], second["runs"]) == ("b", None, [])


async def test_api_key_is_required(app: FastAPI, database: Database, settings: Settings) -> None:
    locked = settings.model_copy(update={"API_KEYS": [SecretStr(KEY)]})
    client = connect(app, database, locked)

    assert (await client.get(JOBS)).status_code == 401
    found = await client.get(JOBS, headers={"X-API-Key": KEY})
    assert (found.status_code, found.json()) == (200, {"leader": None, "jobs": []})
