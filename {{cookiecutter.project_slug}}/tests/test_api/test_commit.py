"""A 2xx means committed: however the session is asked for, whatever fails."""

from collections.abc import AsyncGenerator
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from httpx import AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from src.api.deps import DbSession, get_db_session
from src.db.session import Database
from tests.fixtures.client import connect

# The constraint is checked when the transaction commits, and not before.
DEFERRED = text(
    "CREATE TABLE one (id int PRIMARY KEY, CONSTRAINT only_one UNIQUE (id)"
    " DEFERRABLE INITIALLY DEFERRED, other int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
)


@pytest.fixture
async def committing(
    fresh_app: FastAPI, committing_database: Database
) -> AsyncGenerator[AsyncClient]:
    """The service with endpoints whose commit fails, in each way to take the session."""

    @fresh_app.post("/fails/alias", status_code=201)
    async def alias(db: DbSession) -> str:
        return await insert_twice(db)

    @fresh_app.post("/fails/annotated", status_code=201)
    async def annotated(db: Annotated[AsyncSession, Depends(get_db_session)]) -> str:
        return await insert_twice(db)

    @fresh_app.post("/fails/default", status_code=201)
    async def default(db: AsyncSession = Depends(get_db_session)) -> str:
        return await insert_twice(db)

    async with committing_database.transaction() as session:
        await session.execute(DEFERRED)
    yield connect(fresh_app, committing_database)
    async with committing_database.transaction() as session:
        await session.execute(text("DROP TABLE one"))


async def insert_twice(db: AsyncSession) -> str:
    await db.execute(text("INSERT INTO one (id, other) VALUES (1, 1), (2, 1)"))
    return "created"


@pytest.mark.parametrize("way", ["alias", "annotated", "default"])
async def test_a_failing_commit_is_not_a_success(
    committing: AsyncClient, committing_database: Database, way: str
) -> None:
    response = await committing.post(f"/fails/{way}")

    assert response.status_code == 500
    assert "other" not in response.text
    async with committing_database.reads() as session:
        assert await session.scalar(text("SELECT count(*) FROM one")) == 0


async def test_what_was_answered_can_be_read_at_once(committing_client: AsyncClient) -> None:
    created = await committing_client.post("/api/v1/items/", json={"name": "Lamp"})

    found = await committing_client.get(created.headers["location"])

    assert found.json() == created.json()


async def test_an_error_rolls_back(committing_client: AsyncClient) -> None:
    item = (await committing_client.post("/api/v1/items/", json={"name": "Lamp"})).json()
    path = f"/api/v1/items/{item['id']}"
    await committing_client.patch(path, json={"status": "active"})

    response = await committing_client.patch(path, json={"name": "Light", "status": "draft"})

    assert response.status_code == 409
    assert (await committing_client.get(path)).json()["name"] == "Lamp"
