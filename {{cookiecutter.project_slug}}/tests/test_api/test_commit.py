"""A 2xx means committed, however the endpoint takes its session and however many run at once."""

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
async def failing_client(
    fresh_app: FastAPI, committing_database: Database
) -> AsyncGenerator[AsyncClient]:
    """The service with endpoints whose commit fails: the constraint is checked by it."""

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


@pytest.mark.parametrize("spelling", ["alias", "annotated", "default"])
async def test_a_failed_commit_is_500(
    failing_client: AsyncClient, committing_database: Database, spelling: str
) -> None:
    response = await failing_client.post(f"/fails/{spelling}")

    assert response.status_code == 500
    assert "deferred" not in response.text
    async with committing_database.reads() as session:
        assert await session.scalar(text("SELECT count(*) FROM deferred")) == 0


async def test_a_created_row_can_be_read_at_once(committing_client: AsyncClient) -> None:
    created = await committing_client.post(NOTES, json={"text": "Lamp"})

    found = await committing_client.get(created.headers["location"])

    assert found.json() == created.json()


async def test_an_error_rolls_back(committing_client: AsyncClient) -> None:
    created = await committing_client.post(NOTES, json={"text": "Lamp"})
    path = created.headers["location"]

    response = await committing_client.patch(path, json={"text": "refused"})

    assert response.status_code == 409
    assert (await committing_client.get(path)).json()["text"] == "Lamp"


@pytest.mark.parametrize(
    ("headers", "statuses", "version"),
    [({"If-Match": '"1"'}, [200] + [412] * 7, 2), ({}, [200] * 8, 9)],
    ids=["one change wins with If-Match", "all changes happen without"],
)
async def test_changes_of_one_row(
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


async def test_more_requests_than_connections_wait_their_turn(
    committing_client: AsyncClient,
) -> None:
    responses = await asyncio.gather(
        *(committing_client.post(NOTES, json={"text": f"Lamp {n}"}) for n in range(60))
    )

    assert {response.status_code for response in responses} == {201}
