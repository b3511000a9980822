"""Requests that import items from a CSV file."""

from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import SecretStr
from sqlalchemy import func, select

from src.core.config import Settings
from src.db.models.item_import import ItemImport
from src.db.models.task import OutboxMessage
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.environment import API

IMPORTS = f"{API}/item-imports/"
CSV = {"Content-Type": "text/csv"}


async def test_an_import_is_accepted(client: AsyncClient, database: Database) -> None:
    response = await client.post(IMPORTS, content="name\nLamp\n", headers=CSV)
    task = (await client.get(response.headers["Location"])).json()
    async with database.reads() as session:
        imported = (await session.scalars(select(ItemImport))).one()
    found = (await client.get(f"{IMPORTS}{imported.id}")).json()
    unknown = await client.get(f"{IMPORTS}{uuid4()}")

    assert response.status_code == 202
    assert (task["actor"], task["status"]) == ("import_items", "queued")
    assert (found["done"], found["total"]) == (0, 1)
    assert unknown.json()["type"] == "urn:problem-type:item-import-not-found"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", None),
        (b"name\n", "import-file"),
        (b"name,price\nLamp,1\n", "import-file"),
        (b"name\n\xff\n", "import-file"),
    ],
)
async def test_an_invalid_file_enqueues_no_task(
    client: AsyncClient, database: Database, content: bytes, code: str | None
) -> None:
    response = await client.post(IMPORTS, content=content, headers=CSV)

    assert response.status_code in {400, 422}
    assert code is None or response.json()["type"] == f"urn:problem-type:{code}"
    async with database.reads() as session:
        assert await session.scalar(select(func.count(OutboxMessage.id))) == 0


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("GET", str(UUID(int=7)))])
async def test_imports_need_a_key(app: FastAPI, database: Database, method: str, path: str) -> None:
    client = connect(app, database, Settings(ENV="test", API_KEYS=[SecretStr("a" * 16)]))
    response = await client.request(method, f"{IMPORTS}{path}", content="name\nLamp\n", headers=CSV)

    assert response.status_code == 401
