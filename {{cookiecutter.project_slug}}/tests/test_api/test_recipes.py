"""The snippets of docs/sessions.md, recipes.md, http.md and testing.md run."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import AsyncClient
from sqlalchemy import URL, select

from src.core.config import Settings
from src.db.session import Database
from tests.fixtures.client import HEADERS, connect
from tests.fixtures.notes import NOTES, Note, NoteResponse
from tests.fixtures.pages import python_blocks

Names = dict[str, Any]


def run_page(name: str, *, only: str = "") -> Names:
    """Run the blocks of a page that contain `only`, in order, in one module."""
    names: Names = {"__name__": "docs", "Note": Note, "NoteResponse": NoteResponse}
    for block in python_blocks(name):
        if only in block:
            exec(block, names)  # noqa: S102 - our own page
    return names


async def texts(database: Database) -> list[str]:
    async with database.reads() as session:
        return list(await session.scalars(select(Note.text).order_by(Note.id)))


@pytest.fixture
def sessions(fresh_app: FastAPI) -> Names:
    names = run_page("sessions.md")
    fresh_app.include_router(names["router"])
    return names


@pytest.fixture
def client(fresh_app: FastAPI, committing_database: Database) -> AsyncClient:
    return connect(fresh_app, committing_database)


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}], ids=["plain", "keyed"])
@pytest.mark.parametrize("path", ["later", "audited"])
async def test_work_after_the_endpoint_writes(
    client: AsyncClient, committing_database: Database, path: str, headers: dict[str, str]
) -> None:
    assert (await client.post(f"/recipes/{path}", headers=headers)).status_code == 200
    assert await texts(committing_database) == [path]


@pytest.mark.usefixtures("sessions")
async def test_caught_error_and_stream(client: AsyncClient) -> None:
    for text in ("one", "two"):
        response = await client.post("/recipes/once", params={"text": text})
        assert response.json() is True

    exported = await client.get("/recipes/export")

    assert exported.headers["content-type"].startswith("application/jsonl")
    assert [NoteResponse.model_validate_json(line).text for line in exported.text.splitlines()] == [
        "one",
        "two",
    ]


async def test_script_writes(
    sessions: Names,
    committing_url: URL,
    committing_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = committing_url.set(drivername="postgresql").render_as_string(hide_password=False)
    settings = Settings(DATABASE_URL=address)
    monkeypatch.setitem(sessions, "get_settings", lambda: settings)

    await sessions["main"]()

    assert await texts(committing_database) == ["script"]


@pytest.mark.usefixtures("sessions")
def test_synchronous_client(sync_client: TestClient) -> None:
    created = sync_client.post(NOTES, json={"text": "Lamp"})
    with sync_client.websocket_connect("/recipes/notes") as websocket:
        websocket.send_text("Buy bulbs")
        assert websocket.receive_text() == "stored"

    assert created.status_code == 201
    listed = sync_client.get(NOTES).json()
    assert [note["text"] for note in listed] == ["Lamp", "Buy bulbs"]


async def test_expensive_read(client: AsyncClient, fresh_app: FastAPI) -> None:
    fresh_app.include_router(run_page("recipes.md", only="ExpensiveReadSession")["router"])

    assert (await client.get("/reports/totals")).json() > 0


async def test_rate_limits(fresh_app: FastAPI, committing_database: Database) -> None:
    fresh_app.include_router(run_page("http.md", only="rate_limit")["router"])
    client = connect(fresh_app, committing_database, rate_limits=True)

    for user in ("Ann", "Ben"):
        responses = [
            await client.post("/limited/invitations", headers={"X-User": user}) for _ in range(21)
        ]
        assert [each.status_code for each in responses] == [200] * 20 + [429]


def test_http_client_is_open_while_the_application_runs(fresh_app: FastAPI) -> None:
    names = run_page("recipes.md", only="httpx")
    fresh_app.include_router(names["router"])
    sent = []

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(str(request.url))
        return httpx.Response(200, text="1.25")

    fake = httpx.AsyncClient(transport=httpx.MockTransport(respond))
    fresh_app.dependency_overrides[names["get_http"]] = lambda: fake
    with TestClient(fresh_app, headers=HEADERS) as client:
        assert client.get("/rates/eur").json() == 1.25
        state: Any = client.app_state
        assert isinstance(state["http"], httpx.AsyncClient)
    assert sent == ["https://rates.example/eur"]
