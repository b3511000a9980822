"""The statements that endpoints send to PostgreSQL."""

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES
from tests.fixtures.statements import recorded


@pytest.fixture
async def note(committing_client: AsyncClient) -> str:
    """The path of a note. The requests also warm up the connection."""
    created = await committing_client.post(NOTES, json={"text": "Lamp"})
    path: str = created.headers["location"]
    await committing_client.get(path)
    return path


@pytest.mark.parametrize(
    ("path", "statements"),
    [
        ("{note}", ["SELECT"]),
        (NOTES, ["SELECT"]),
        (f"{API}/health/live", []),
    ],
)
async def test_a_read_sends_one_statement(
    app: FastAPI, committing_database: Database, note: str, path: str, statements: list[str]
) -> None:
    client = connect(app, committing_database)
    with recorded(committing_database) as sent:
        response = await client.get(path.replace("{note}", note))

    assert response.status_code == 200
    assert sent == statements


async def test_a_write_sends_one_transaction(
    committing_client: AsyncClient, committing_database: Database, note: str
) -> None:
    with recorded(committing_database) as created:
        await committing_client.post(NOTES, json={"text": "Lamp"})
    with recorded(committing_database) as changed:
        await committing_client.patch(note, json={"text": "Light"})
    with recorded(committing_database) as unchanged:
        await committing_client.patch(note, json={"text": "Light"})
    with recorded(committing_database) as deleted:
        await committing_client.delete(note)

    assert created == ["BEGIN", "INSERT", "COMMIT"]
    assert changed == ["BEGIN", "SELECT", "UPDATE", "COMMIT"]
    assert unchanged == ["BEGIN", "SELECT", "COMMIT"]
    assert deleted == ["BEGIN", "SELECT", "DELETE", "COMMIT"]


async def test_an_invalid_request_sends_nothing(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    with recorded(committing_database) as sent:
        assert (await committing_client.post(NOTES, json={})).status_code == 422

    assert sent == []
