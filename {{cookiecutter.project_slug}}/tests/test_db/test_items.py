"""The statements of the example's endpoints, and their round trips to PostgreSQL.

They cost more than everything else in a request. A new one should be a decision.
"""

from collections.abc import AsyncGenerator, Iterator
from itertools import count

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from src.db.session import Database, open_database
from src.domain.principal import Scope
from tests.fixtures.client import connect, create_key
from tests.fixtures.environment import API
from tests.proxy import PostgresProxy

ITEMS = f"{API}/items/"
CHANGE = ["BEGIN", "SELECT", "UPDATE", "COMMIT"]
HEADER_BYTES = 5  # of a message: its type, and its length without the type


class Wire:
    """What a client sends to PostgreSQL, in its protocol (version 3)."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.round_trips = 0
        self._prepared: dict[bytes, str] = {}

    def read(self, chunk: bytes) -> float:
        for kind, body in _messages(chunk):
            if kind == b"P":  # Parse: a name and a statement
                name, text, *_ = body.split(b"\0")
                self._prepared[name] = _first_word(text)
            elif kind == b"B":  # Bind: a portal and the name of a prepared statement
                self.statements.append(self._prepared[body.split(b"\0")[1]])
            elif kind == b"Q":  # Query, without parameters
                self.statements.append(_first_word(body))
            self.round_trips += kind in {b"Q", b"S"}  # after Query and Sync, the client waits
        return 0

    def clear(self) -> None:
        self.statements, self.round_trips = [], 0


def _messages(chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
    while chunk and chunk[:1] != b"\0":  # a message without a type starts a connection
        end = 1 + int.from_bytes(chunk[1:HEADER_BYTES])
        yield chunk[:1], chunk[HEADER_BYTES:end]
        chunk = chunk[end:]


def _first_word(statement: bytes) -> str:
    return statement.split(maxsplit=1)[0].strip(b";\0").decode()


@pytest.fixture
def wire(db_proxy: PostgresProxy) -> Wire:
    wire = Wire()
    db_proxy.delay = wire.read
    return wire


@pytest.fixture
async def database(db_proxy: PostgresProxy) -> AsyncGenerator[Database]:
    async with open_database(db_proxy.url, pool_size=1) as database:
        yield database


@pytest.fixture
def client(app: FastAPI, database: Database) -> AsyncClient:
    return connect(app, database)


async def create(client: AsyncClient) -> str:
    response = await client.post(ITEMS, json={"name": "Lamp"})
    return str(response.headers["location"])


@pytest.mark.parametrize(
    ("query", "statements"),
    [("?", ["SELECT"]), ("?total=true&", ["SELECT"] * 2), ("search?q=lamp&", ["WITH"])],
    ids=["list", "total", "search"],
)
async def test_lists(client: AsyncClient, wire: Wire, query: str, statements: list[str]) -> None:
    for offset in range(3):  # the first request connects and prepares the statements
        wire.clear()
        assert (await client.get(f"{ITEMS}{query}offset={offset}")).status_code == 200

    assert (wire.statements, wire.round_trips) == (statements, len(statements))


async def test_read_by_id(client: AsyncClient, wire: Wire) -> None:
    for path in [await create(client) for _ in range(3)]:
        wire.clear()
        assert (await client.get(path)).status_code == 200

    assert (wire.statements, wire.round_trips) == (["SELECT"], 1)


async def test_an_api_key_is_one_more_statement(
    client: AsyncClient, database: Database, wire: Wire
) -> None:
    client.headers["X-API-Key"] = await create_key(database, *Scope)
    for path in [await create(client) for _ in range(3)]:
        wire.clear()
        assert (await client.get(path)).status_code == 200

    assert (wire.statements, wire.round_trips) == (["SELECT", "SELECT"], 2)


@pytest.mark.parametrize("has_key", [False, True], ids=["plain", "idempotent"])
async def test_create(client: AsyncClient, wire: Wire, *, has_key: bool) -> None:
    for number in range(3):
        wire.clear()
        client.headers.update({"Idempotency-Key": str(number)} if has_key else {})
        await create(client)

    statements = ["INSERT", "INSERT", "WITH"] if has_key else ["INSERT"]
    assert wire.statements == ["BEGIN", *statements, "COMMIT"]
    assert wire.round_trips == len(wire.statements)


@pytest.mark.parametrize(
    ("method", "statements"),
    [("PATCH", CHANGE), ("DELETE", ["BEGIN", "SELECT", "DELETE", "COMMIT"])],
)
async def test_changes(client: AsyncClient, wire: Wire, method: str, statements: list[str]) -> None:
    numbers = count()
    for path in [await create(client) for _ in range(3)]:
        wire.clear()
        body = {"name": f"Lamp {next(numbers)}"} if method == "PATCH" else None
        assert (await client.request(method, path, json=body)).is_success

    assert (wire.statements, wire.round_trips) == (statements, len(statements))
