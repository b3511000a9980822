"""`ExpensiveReadSession`: reads that may be slow do not delay other requests."""

import asyncio

import pytest
from fastapi import FastAPI
from httpx import Response
from sqlalchemy import URL, text

from src.api.deps import ExpensiveReadSession
from src.db import session
from src.db.session import Database, open_database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES
from tests.fixtures.statements import until_waiting


@pytest.fixture
def app(fresh_app: FastAPI) -> FastAPI:
    @fresh_app.get("/report")
    async def report(db: ExpensiveReadSession, *, wait: bool = False) -> None:
        if wait:
            await db.execute(text("SELECT pg_advisory_lock(1), pg_advisory_unlock(1)"))

        await db.execute(text("SELECT 1"))

    return fresh_app


def assert_busy(response: Response) -> None:
    assert response.status_code == 503, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "1"


async def test_a_limited_number_runs_at_the_same_time(
    app: FastAPI,
    committing_database: Database,
    committing_url: URL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "EXPENSIVE_READS", 2)
    monkeypatch.setattr(session, "EXPENSIVE_READ_SECONDS", 60)
    monkeypatch.setattr(session, "POOL_TIMEOUT_SECONDS", 0.1)
    async with open_database(committing_url, pool_size=1) as database:
        client = connect(app, database)
        async with committing_database.transaction() as db:
            await db.execute(text("SELECT pg_advisory_xact_lock(1)"))
            running = [asyncio.create_task(client.get("/report?wait=1")) for _ in range(2)]
            await until_waiting(committing_database, len(running))

            assert_busy(await client.get("/report"))
            assert (await client.get(NOTES)).status_code == 200

        responses = await asyncio.gather(*running)
        assert [response.status_code for response in responses] == [200, 200]


async def test_a_slow_statement_is_cancelled(
    app: FastAPI,
    committing_database: Database,
    committing_url: URL,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "EXPENSIVE_READ_SECONDS", 0.5)
    async with open_database(committing_url, pool_size=1) as database:
        client = connect(app, database)
        async with committing_database.transaction() as db:
            await db.execute(text("SELECT pg_advisory_xact_lock(1)"))
            assert_busy(await client.get("/report?wait=1"))
            await until_waiting(committing_database, 0)
