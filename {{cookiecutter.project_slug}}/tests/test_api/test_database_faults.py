"""Responses while PostgreSQL is unavailable, and after its recovery."""

import asyncio
from collections.abc import AsyncGenerator
from threading import Thread
from typing import cast
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import BaseModel
from sqlalchemy import URL, QueuePool, case, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from src.api.deps import DbReader, DbSession, ReadSession
from src.db import connection
from src.db import session as db_session
from src.db.reader import Query
from src.db.session import Database, open_database
from tests.fixtures.client import connect
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES, Note, NoteRepository
from tests.proxy import PostgresProxy

TIMEOUT_SECONDS = 60


@pytest.fixture
async def database(db_proxy: PostgresProxy) -> AsyncGenerator[Database]:
    async with open_database(db_proxy.url, pool_size=2) as database:
        yield database


@pytest.fixture
def client(app: FastAPI, database: Database) -> AsyncClient:
    return connect(app, database)


async def assert_unavailable(client: AsyncClient) -> None:
    for headers in ({}, {"Idempotency-Key": str(uuid4())}):
        response = await client.post(NOTES, json={"text": "Lamp"}, headers=headers)

        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["retry-after"] == "1"
        assert response.json()["detail"] == "The database is unavailable or busy. Try again later."


async def test_an_outage_returns_503_until_the_server_has_recovered(
    client: AsyncClient, db_proxy: PostgresProxy
) -> None:
    await db_proxy.stop()
    await assert_unavailable(client)

    await db_proxy.start()
    assert (await client.get(NOTES)).status_code == 200

    await db_proxy.stop()
    await assert_unavailable(client)
    assert (await client.get(f"{API}/health/live")).status_code == 200
    ready = await client.get(f"{API}/health/ready")
    assert (ready.status_code, ready.json()["checks"]) == (503, {"database": "unavailable"})

    await db_proxy.start()
    assert (await client.post(NOTES, json={"text": "Lamp"})).status_code == 201
    assert (await client.get(f"{API}/health/ready")).status_code == 200


async def test_readiness_does_not_wait_for_a_frozen_server(
    client: AsyncClient, db_proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get(f"{API}/health/ready")).status_code == 200

    monkeypatch.setattr("src.services.health.CHECK_TIMEOUT_SECONDS", 0.1)
    db_proxy.freeze()
    async with asyncio.timeout(connection.COMMAND_TIMEOUT_SECONDS / 2):  # the other limit
        ready = await client.get(f"{API}/health/ready")

    assert ready.status_code == 503


async def test_a_frozen_server_returns_503(
    db_proxy: PostgresProxy, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_SECONDS", 0.2)
    async with open_database(db_proxy.url, pool_size=2) as database:
        client = connect(app, database)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (await client.get(NOTES)).status_code != 200:
                pass  # a busy machine may exceed the timeout

        db_proxy.freeze()
        await assert_unavailable(client)
        await db_proxy.stop()


async def test_a_deadlock_returns_503_to_one_request(
    fresh_app: FastAPI, committing_database: Database
) -> None:
    first, second = uuid4(), uuid4()
    async with committing_database.transaction() as session:
        session.add_all([Note(id=first, text="first"), Note(id=second, text="second")])
    both_locked = asyncio.Barrier(2)

    @fresh_app.post("/lock/{one}/{other}")
    async def lock(one: UUID, other: UUID, db: DbSession) -> None:
        repository = NoteRepository(db)
        await repository.get_for_update(one)
        await both_locked.wait()
        await repository.get_for_update(other)

    client = connect(fresh_app, committing_database)
    responses = await asyncio.gather(
        client.post(f"/lock/{first}/{second}"), client.post(f"/lock/{second}/{first}")
    )

    assert sorted(response.status_code for response in responses) == [200, 503]


async def test_a_cancelled_request_returns_its_connection_to_the_pool(
    app: FastAPI, committing_url: URL
) -> None:
    async with open_database(committing_url, pool_size=2) as database:
        client = connect(app, database)
        for n in range(40):
            request = asyncio.create_task(client.post(NOTES, json={"text": f"Lamp {n}"}))
            await asyncio.sleep(0.0005 * (n % 10))
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

        engine = cast(AsyncEngine, database.writes.kw["bind"])
        assert cast(QueuePool, engine.pool).checkedout() == 0
        assert (await client.get(NOTES)).status_code == 200


async def test_a_timeout_of_the_caller_is_not_reported_as_an_outage(
    committing_database: Database,
) -> None:
    with pytest.raises(TimeoutError):
        async with committing_database.reads() as session, asyncio.timeout(0.1):
            await session.execute(text("SELECT pg_sleep(60)"))


async def test_the_first_read_of_entities_after_a_migration_returns_503_and_the_next_succeeds(
    app: FastAPI, fresh_url: URL
) -> None:
    async with open_database(fresh_url, pool_size=1) as database:
        client = connect(app, database)
        created = await client.post(NOTES, json={"text": "Lamp"})
        path = created.headers["location"]
        for each in (path, NOTES):
            await client.get(each)
        async with open_database(fresh_url, pool_size=1) as other, other.transaction() as session:
            await session.execute(text("ALTER TABLE test.note ALTER text TYPE varchar(500)"))

        assert (await client.get(path)).status_code == 200
        assert (await client.get(NOTES)).status_code == 503
        assert (await client.get(NOTES)).status_code == 200


async def test_an_exhausted_pool_returns_503_and_readiness_passes(
    committing_url: URL, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_session, "POOL_TIMEOUT_SECONDS", 0.1)
    async with (
        open_database(committing_url, pool_size=1) as database,
        database.transaction() as busy,
    ):
        await busy.connection()
        client = connect(app, database)
        await assert_unavailable(client)
        assert (await client.get(f"{API}/health/ready")).status_code == 200


OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.mark.parametrize("event_loop_runs", [True, False], ids=["seen", "unseen"])
@pytest.mark.parametrize("idle_seconds", [0, 60], ids=["idle", "just used"])
async def test_no_request_fails_after_a_restart_while_the_service_is_idle(
    app: FastAPI,
    committing_url: URL,
    monkeypatch: pytest.MonkeyPatch,
    idle_seconds: int,
    *,
    event_loop_runs: bool,
) -> None:
    monkeypatch.setattr(connection, "IDLE_CHECK_SECONDS", idle_seconds)
    async with open_database(committing_url, pool_size=4) as database:
        client = connect(app, database)
        note = (await client.post(NOTES, json={"text": "Lamp"})).headers["location"]

        async def send() -> list[int]:
            writes = [client.post(NOTES, json={"text": "Lamp"}) for _ in range(2)]
            reads = [client.get(path) for path in (NOTES, note)]
            return [each.status_code for each in await asyncio.gather(*writes, *reads)]

        await send()
        if event_loop_runs:
            await asyncio.to_thread(terminate, committing_url)
        else:
            thread = Thread(target=terminate, args=(committing_url,))
            thread.start()
            thread.join()
        assert await send() == [201, 201, 200, 200]


def terminate(url: URL) -> None:
    """Close all connections of the database, as a restart does, and wait for their end."""

    async def run() -> None:
        async with open_database(url, pool_size=1) as other, other.reads() as session:
            await session.execute(text(f"SELECT pg_terminate_backend(pid, 60000) {OTHERS}"))

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/sleep", "/rows"])
async def test_a_read_whose_connection_cannot_be_replaced_returns_503(
    fresh_app: FastAPI,
    database: Database,
    db_proxy: PostgresProxy,
    committing_database: Database,
    path: str,
) -> None:
    sleeping_query = select(func.pg_sleep(600))

    @fresh_app.get("/sleep")
    async def sleep(db: ReadSession) -> None:
        await db.execute(sleeping_query)

    @fresh_app.get("/rows")
    async def read_rows(db: DbReader) -> None:
        await db.rows(Query(BaseModel, sleeping_query, others=1), {})

    request = asyncio.create_task(connect(fresh_app, database).get(path))
    async with committing_database.reads() as session:
        sleeping = text(f"SELECT count(*) {OTHERS} AND wait_event = 'PgSleep'")
        while not await session.scalar(sleeping):
            pass
    await db_proxy.stop()

    response = await request
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


ATTEMPTS = text("SELECT last_value FROM attempt")


@pytest.mark.parametrize(
    ("path", "status"), [("/read", 200), ("/rows", 200), ("/insert", 503), ("/write", 503)]
)
async def test_only_a_select_is_repeated_if_its_connection_is_lost(
    fresh_app: FastAPI, fresh_url: URL, path: str, status: int
) -> None:
    end = func.pg_terminate_backend(func.pg_backend_pid())
    end_once = select(case((func.nextval("attempt") == 1, end)), func.pg_sleep(0.1))

    @fresh_app.post("/read")
    async def read(db: ReadSession) -> bool:
        return (await db.execute(end_once)).one()[0] is None

    @fresh_app.post("/rows")
    async def read_rows(db: DbReader) -> None:
        await db.rows(Query(BaseModel, end_once, others=2), {})

    @fresh_app.post("/insert")
    async def insert_note(db: ReadSession) -> None:
        note = insert(Note).values(text="Lamp", version=1).returning(Note.id).cte()
        await db.execute(end_once.add_columns(select(note.c.id).scalar_subquery()))

    @fresh_app.post("/write")
    async def write(db: DbSession) -> None:
        await db.execute(end_once)

    async with open_database(fresh_url, pool_size=2) as database:
        async with database.transaction() as session:
            await session.execute(text("CREATE SEQUENCE attempt"))

        response = await connect(fresh_app, database).post(path)

        assert response.status_code == status
        async with database.reads() as session:
            assert await session.scalar(ATTEMPTS) == (2 if status == 200 else 1)


async def test_server_that_refuses_to_replace_a_connection_returns_503(
    fresh_app: FastAPI, fresh_url: URL, committing_database: Database
) -> None:
    """Such as one that shuts down: it responds with an error."""
    refuse = text(f'ALTER DATABASE "{fresh_url.database}" ALLOW_CONNECTIONS false')

    @fresh_app.get("/refused")
    async def lose_connection(db: ReadSession) -> None:
        process = await db.scalar(select(func.pg_backend_pid()))
        async with committing_database.reads() as other:
            await other.execute(refuse)
            await other.execute(select(func.pg_terminate_backend(process, 60_000)))
        await db.execute(select(1))

    async with open_database(fresh_url, pool_size=1) as database:
        assert (await connect(fresh_app, database).get("/refused")).status_code == 503
