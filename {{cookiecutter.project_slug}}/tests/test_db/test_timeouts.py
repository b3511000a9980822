"""Locks that last too long, idle transactions, and servers that cannot write."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession

from src.core import postgres_url
from src.core.config import load_settings
from src.db.session import Database, DatabaseUnavailableError, open_database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES, Note, NoteRepository
from tests.pgbouncer import needs_pgbouncer

SETTINGS = ["1500ms", "20s"]


def configured(env: pytest.MonkeyPatch, url: URL) -> URL:
    url = url.difference_update_query(postgres_url.TIMEOUTS)
    env.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    env.setenv("DATABASE_LOCK_TIMEOUT_SECONDS", "1.5")
    env.setenv("DATABASE_IDLE_TRANSACTION_SECONDS", "20")
    return load_settings().database_url


async def shown(session: AsyncSession) -> list[str]:
    names = ("lock_timeout", "idle_in_transaction_session_timeout")
    return [await session.scalar(text(f"SHOW {name}")) or "" for name in names]


async def test_settings_apply_to_all_statements(
    env: pytest.MonkeyPatch, committing_url: URL
) -> None:
    async with open_database(configured(env, committing_url), pool_size=1) as database:
        async with database.transaction() as session:
            assert await shown(session) == SETTINGS
        async with database.reads() as session:
            assert await shown(session) == SETTINGS


@needs_pgbouncer
async def test_settings_apply_to_transactions_behind_a_pooler(
    env: pytest.MonkeyPatch, pooler_url: URL
) -> None:
    async with open_database(configured(env, pooler_url), pool_size=1) as database:
        for _ in range(5):  # each time on another connection of the server
            async with database.transaction() as session:
                assert await shown(session) == SETTINGS
            async with database.reads() as session:
                assert await shown(session) == ["0", "0"]


@needs_pgbouncer
async def test_a_pooler_without_the_setting_is_explained(
    env: pytest.MonkeyPatch, pooler_url: URL
) -> None:
    url = pooler_url.difference_update_query(["pgbouncer"])
    async with open_database(configured(env, url), pool_size=1) as database:
        with pytest.raises(DatabaseUnavailableError, match="set DATABASE_POOLER=true"):
            async with database.reads() as session:
                await session.execute(text("SELECT 1"))


async def test_an_option_of_the_url_has_priority(
    env: pytest.MonkeyPatch, committing_url: URL
) -> None:
    url = committing_url.update_query_dict({"options": "-c lock_timeout=7s"})
    async with (
        open_database(configured(env, url), pool_size=1) as database,
        database.reads() as session,
    ):
        assert await shown(session) == ["7s", "20s"]


@pytest.fixture
async def impatient(committing_url: URL) -> AsyncGenerator[Database]:
    options = {"lock_timeout": "50ms", "idle_in_transaction_session_timeout": "500ms"}
    async with open_database(committing_url.update_query_dict(options), pool_size=5) as database:
        yield database


@pytest.fixture
def client(app: FastAPI, impatient: Database) -> AsyncClient:
    return connect(app, impatient)


async def test_waiting_for_a_locked_row_returns_503_and_frees_the_pool(
    client: AsyncClient, committing_database: Database
) -> None:
    path = (await client.post(NOTES, json={"text": "Lamp"})).headers["location"]
    async with committing_database.transaction() as session:
        await NoteRepository(session).get_for_update(UUID(path[len(NOTES) :]))
        changes = [client.patch(path, json={"text": "Sofa"}) for _ in range(5)]
        responses = await asyncio.gather(*changes)
        read = await client.get(path)

    assert read.status_code == 200
    for response in responses:
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.headers["content-type"] == "application/problem+json"
    assert (await client.patch(path, json={"text": "Sofa"})).status_code == 200


async def test_postgresql_ends_the_transaction_of_a_frozen_process(
    client: AsyncClient, impatient: Database
) -> None:
    path = (await client.post(NOTES, json={"text": "Lamp"})).headers["location"]
    with pytest.raises(DatabaseUnavailableError):  # noqa: PT012 - one block
        async with impatient.transaction() as frozen:
            note = await NoteRepository(frozen).get_for_update(UUID(path[len(NOTES) :]))
            assert note
            note.text = "lost"
            while (await client.patch(path, json={"text": "Sofa"})).status_code != 200:
                pass
    assert (await client.get(path)).json()["text"] == "Sofa"


async def test_the_pool_recovers_from_a_server_that_is_read_only(
    app: FastAPI, fresh_url: URL
) -> None:
    """As a standby after a failover, or a full disk at some providers."""
    async with (
        open_database(fresh_url, pool_size=2) as admin,
        open_database(fresh_url, pool_size=4) as database,
    ):

        async def set_read_only(value: str) -> None:
            setting = f"SET default_transaction_read_only = {value}"
            async with admin.transaction() as session:
                await session.execute(text("SET TRANSACTION READ WRITE"))
                await session.execute(text(f'ALTER DATABASE "{fresh_url.database}" {setting}'))

        client = connect(app, database)
        writes = [{"text": "Lamp"}] * 4
        await set_read_only("on")
        refused = await asyncio.gather(*(client.post(NOTES, json=each) for each in writes))
        read = await client.get(NOTES)
        await set_read_only("off")
        # One request may still use a connection that was opened in the meantime.
        await client.post(NOTES, json=writes[0])
        accepted = await asyncio.gather(*(client.post(NOTES, json=each) for each in writes))

    assert {response.status_code for response in refused} == {503}
    assert read.status_code == 200
    assert {response.status_code for response in accepted} == {201}


@pytest.mark.parametrize(
    "sqlstate", ["08006", "25006", "40P01", "53100", "53300", "57P01", "57P03", "58030"]
)
async def test_faults_of_the_server_return_503(
    fresh_app: FastAPI, committing_database: Database, sqlstate: str
) -> None:
    @fresh_app.post("/fault")
    async def fault() -> None:
        async with committing_database.transaction() as session:
            session.add(Note(id=uuid4(), text="lost"))
            await session.flush()
            raised = f"RAISE EXCEPTION USING ERRCODE = '{sqlstate}'"
            await session.execute(text(f"DO $$ BEGIN {raised}; END $$"))

    client = connect(fresh_app, committing_database)
    response = await client.post("/fault")

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert (await client.get(NOTES)).json() == []
