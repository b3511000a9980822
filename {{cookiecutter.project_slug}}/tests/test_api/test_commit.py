"""A 2xx response means that the transaction has committed."""

import asyncio
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
from tests.fixtures.notes import NOTES


@pytest.fixture
async def client_with_failing_commits(
    fresh_app: FastAPI, committing_database: Database
) -> AsyncGenerator[AsyncClient]:
    """A client with endpoints whose COMMIT fails, on a deferred constraint."""

    async def insert_twice(db: AsyncSession) -> str:
        await db.execute(text("INSERT INTO deferred VALUES (1), (1)"))
        return "created"

    @fresh_app.post("/fails/alias", status_code=201)
    async def alias(db: DbSession) -> str:
        return await insert_twice(db)

    @fresh_app.post("/fails/annotated", status_code=201)
    async def annotated(db: Annotated[AsyncSession, Depends(get_db_session)]) -> str:
        return await insert_twice(db)

    @fresh_app.post("/fails/default", status_code=201)
    async def default(db: AsyncSession = Depends(get_db_session)) -> str:
        return await insert_twice(db)

    create = text("CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    async with committing_database.transaction() as session:
        await session.execute(create)
    yield connect(fresh_app, committing_database)
    async with committing_database.transaction() as session:
        await session.execute(text("DROP TABLE deferred"))


@pytest.mark.parametrize("style", ["alias", "annotated", "default"])
async def test_a_failed_commit_returns_no_2xx(
    client_with_failing_commits: AsyncClient, committing_database: Database, style: str
) -> None:
    response = await client_with_failing_commits.post(f"/fails/{style}")

    assert response.status_code == 409
    assert "SQL" not in response.text
    async with committing_database.reads() as session:
        assert await session.scalar(text("SELECT count(*) FROM deferred")) == 0


async def test_a_created_row_can_be_read_immediately(committing_client: AsyncClient) -> None:
    created = await committing_client.post(NOTES, json={"text": "Lamp"})

    found = await committing_client.get(created.headers["location"])

    assert found.json() == created.json()


async def test_an_error_response_rolls_back(committing_client: AsyncClient) -> None:
    created = await committing_client.post(NOTES, json={"text": "Lamp"})
    path = created.headers["location"]

    response = await committing_client.patch(path, json={"text": "refused"})

    assert response.status_code == 409
    assert (await committing_client.get(path)).json()["text"] == "Lamp"


@pytest.mark.parametrize(
    ("headers", "statuses", "version"),
    [({"If-Match": '"1"'}, [200] + [412] * 7, 2), ({}, [200] * 8, 9)],
    ids=["with If-Match", "without If-Match"],
)
async def test_concurrent_changes_of_one_row(
    committing_client: AsyncClient, headers: dict[str, str], statuses: list[int], version: int
) -> None:
    created = await committing_client.post(NOTES, json={"text": "Lamp"})
    path = created.headers["location"]

    responses = await asyncio.gather(
        *(
            committing_client.patch(path, json={"text": f"Lamp {n}"}, headers=headers)
            for n in range(8)
        )
    )

    assert sorted(response.status_code for response in responses) == statuses
    assert (await committing_client.get(path)).json()["version"] == version


async def test_requests_wait_for_a_free_connection(
    committing_client: AsyncClient,
) -> None:
    responses = await asyncio.gather(
        *(committing_client.post(NOTES, json={"text": f"Lamp {n}"}) for n in range(60))
    )

    assert {response.status_code for response in responses} == {201}
