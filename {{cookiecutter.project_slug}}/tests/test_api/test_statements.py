"""What each endpoint sends to PostgreSQL: every statement is a round trip."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from src.db.session import Database
from tests.fixtures.client import connect

ITEMS = "/api/v1/items/"


@contextmanager
def recorded(database: Database) -> Iterator[list[str]]:
    """Collect the first word of each statement in order, BEGIN and COMMIT included.

    SQLAlchemy tells what it ran, asyncpg what went around that.
    """
    sent: list[str] = []

    def around(record: Any) -> None:
        sent.append(record.query.split(maxsplit=1)[0].rstrip(";"))

    def statement(_connection: object, _cursor: object, text: str, *_: object) -> None:
        sent.append(text.split(maxsplit=1)[0])

    def checkout(dbapi_connection: Any, *_: object) -> None:
        dbapi_connection.driver_connection.add_query_logger(around)

    def checkin(dbapi_connection: Any, *_: object) -> None:
        dbapi_connection.driver_connection.remove_query_logger(around)

    engine = cast(AsyncEngine, database.writes.kw["bind"]).sync_engine
    listeners: dict[str, Callable[..., None]] = {
        "checkout": checkout,
        "checkin": checkin,
        "after_cursor_execute": statement,
    }
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    yield sent
    for name, listener in listeners.items():
        event.remove(engine, name, listener)


@pytest.fixture
async def item(committing_client: AsyncClient) -> str:
    """The path of an item; making it has warmed up the connection too."""
    created = await committing_client.post(ITEMS, json={"name": "Lamp"})
    path: str = created.headers["location"]
    await committing_client.get(path)
    return path


@pytest.mark.parametrize(
    ("path", "statements"),
    [
        ("{item}", ["SELECT"]),
        (ITEMS, ["SELECT"]),
        (f"{ITEMS}?total=true", ["SELECT", "SELECT"]),
        (f"{ITEMS}search?q=lamp", ["SELECT"]),
        ("/api/v1/health/live", []),
        ("/api/v1/health/ready", ["SELECT"]),
    ],
)
async def test_a_read_is_one_statement(
    app: FastAPI, committing_database: Database, item: str, path: str, statements: list[str]
) -> None:
    """In a process that has not read it before."""
    client = connect(app, committing_database)
    with recorded(committing_database) as sent:
        response = await client.get(path.replace("{item}", item))

    assert response.status_code == 200
    assert sent == statements


async def test_writes_do_no_more_than_they_must(
    committing_client: AsyncClient, committing_database: Database, item: str
) -> None:
    with recorded(committing_database) as created:
        await committing_client.post(ITEMS, json={"name": "Lamp"})
    with recorded(committing_database) as changed:
        await committing_client.patch(item, json={"name": "Light"})
    with recorded(committing_database) as unchanged:
        await committing_client.patch(item, json={})
    with recorded(committing_database) as deleted:
        await committing_client.delete(item)

    assert created == ["BEGIN", "INSERT", "COMMIT"]
    assert changed == ["BEGIN", "SELECT", "UPDATE", "COMMIT"]
    assert unchanged == ["BEGIN", "SELECT", "COMMIT"]
    assert deleted == ["BEGIN", "SELECT", "DELETE", "COMMIT"]


async def test_a_refused_request_sends_nothing(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    with recorded(committing_database) as sent:
        assert (await committing_client.post(ITEMS, json={})).status_code == 422

    assert sent == []
