"""What a caller sees while PostgreSQL is away, and afterwards."""

import asyncio
from collections.abc import AsyncGenerator
from typing import cast
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL, QueuePool, text
from sqlalchemy.ext.asyncio import AsyncEngine

from src.api.deps import DbSession
from src.db import session as db_session
from src.db.models.item import Item
from src.db.session import Database, open_database
from src.repositories.item import ItemRepository
from tests.fixtures.client import connect
from tests.proxy import Proxy

ITEMS = "/api/v1/items/"
PATIENCE_SECONDS = 60


@pytest.fixture
async def proxy(committing_url: URL) -> AsyncGenerator[Proxy]:
    proxy = Proxy(committing_url)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def database(proxy: Proxy) -> AsyncGenerator[Database]:
    async with open_database(proxy.url, pool_size=2) as database:
        yield database


@pytest.fixture
def client(app: FastAPI, database: Database) -> AsyncClient:
    return connect(app, database)


async def assert_unavailable(client: AsyncClient) -> None:
    response = await client.post(ITEMS, json={"name": "Lamp"})

    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "1"
    assert response.json()["detail"] == "Database unavailable."


async def test_never_there_is_503(client: AsyncClient, proxy: Proxy) -> None:
    await proxy.stop()

    await assert_unavailable(client)
    assert (await client.get(ITEMS)).status_code == 503


async def test_gone_and_back_is_503_and_then_well_again(client: AsyncClient, proxy: Proxy) -> None:
    assert (await client.get(ITEMS)).status_code == 200

    await proxy.stop()
    await assert_unavailable(client)
    assert (await client.get("/api/v1/health/live")).status_code == 200
    ready = await client.get("/api/v1/health/ready")
    assert (ready.status_code, ready.json()["checks"]) == (503, {"database": "unavailable"})

    await proxy.start()
    assert (await client.post(ITEMS, json={"name": "Lamp"})).status_code == 201
    assert (await client.get("/api/v1/health/ready")).status_code == 200


async def test_readiness_does_not_wait_for_a_server_that_hangs(
    client: AsyncClient, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get("/api/v1/health/ready")).status_code == 200

    monkeypatch.setattr("src.services.health.CHECK_TIMEOUT_SECONDS", 0.1)
    proxy.freeze()
    async with asyncio.timeout(db_session.COMMAND_TIMEOUT_SECONDS / 2):  # which is the other limit
        ready = await client.get("/api/v1/health/ready")

    assert ready.status_code == 503


async def test_a_server_that_hangs_is_503(
    proxy: Proxy, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_session, "COMMAND_TIMEOUT_SECONDS", 0.2)
    async with open_database(proxy.url, pool_size=2) as database:
        client = connect(app, database)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await client.get(ITEMS)).status_code != 200:
                pass  # a busy machine may be slower than that too

        proxy.freeze()
        await assert_unavailable(client)
        await proxy.stop()


async def test_of_two_that_wait_for_each_other_one_is_asked_to_come_again(
    fresh_app: FastAPI, committing_database: Database
) -> None:
    first, second = uuid4(), uuid4()
    async with committing_database.transaction() as session:
        session.add_all([Item(id=first, name="first"), Item(id=second, name="second")])
    both_locked = asyncio.Barrier(2)

    @fresh_app.post("/lock/{one}/{other}")
    async def lock(one: UUID, other: UUID, db: DbSession) -> None:
        repository = ItemRepository(db)
        await repository.get_for_update(one)
        await both_locked.wait()
        await repository.get_for_update(other)

    client = connect(fresh_app, committing_database)
    answers = await asyncio.gather(
        client.post(f"/lock/{first}/{second}"), client.post(f"/lock/{second}/{first}")
    )

    assert sorted(answer.status_code for answer in answers) == [200, 503]


async def test_requests_that_are_given_up_return_their_connection(
    app: FastAPI, committing_url: URL
) -> None:
    async with open_database(committing_url, pool_size=2) as database:
        client = connect(app, database)
        for n in range(40):
            request = asyncio.create_task(client.post(ITEMS, json={"name": f"Lamp {n}"}))
            await asyncio.sleep(0.0005 * (n % 10))
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

        engine = cast(AsyncEngine, database.writes.kw["bind"])
        assert cast(QueuePool, engine.pool).checkedout() == 0
        assert (await client.get(ITEMS)).status_code == 200


async def test_a_cancellation_is_no_fault_of_postgresql(committing_database: Database) -> None:
    """Whoever set a time-out of its own gets that, and not an unavailable database."""
    with pytest.raises(TimeoutError):
        async with committing_database.reads() as session, asyncio.timeout(0.1):
            await session.execute(text("SELECT pg_sleep(60)"))


async def test_a_read_in_the_wake_of_a_migration_may_be_tried_again(
    app: FastAPI, fresh_url: URL
) -> None:
    async with open_database(fresh_url, pool_size=1) as database:
        created = await connect(app, database).post(ITEMS, json={"name": "Lamp"})
        item = created.headers["location"]
        await connect(app, database).get(item)
        client = connect(app, database)
        async with open_database(fresh_url, pool_size=1) as other, other.transaction() as session:
            await session.execute(text("ALTER TABLE item DROP search"))
            await session.execute(text("ALTER TABLE item ALTER name TYPE varchar(500)"))

        assert (await client.get(item)).status_code == 503
        assert (await client.get(item)).status_code == 200


async def test_no_free_connection_is_503(
    committing_url: URL, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_session, "POOL_TIMEOUT_SECONDS", 0.1)
    async with (
        open_database(committing_url, pool_size=1) as database,
        database.transaction() as busy,
    ):
        await busy.connection()
        await assert_unavailable(connect(app, database))


async def test_a_backend_that_is_killed_costs_one_request(
    client: AsyncClient, committing_database: Database
) -> None:
    await client.get(ITEMS)
    async with committing_database.reads() as session:
        await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )

    assert (await client.get(ITEMS)).status_code in {200, 503}
    assert (await client.get(ITEMS)).status_code == 200
