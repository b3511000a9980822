"""The service behind PgBouncer in transaction mode."""

import asyncio
import os
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from sqlalchemy import URL, insert, select, text

from src.core.config import ROOT, load_settings
from src.db import connection, session
from src.db.session import DatabaseUnavailableError, open_database
from tests.fixtures.client import connect
from tests.fixtures.commands import LIMIT, Process
from tests.fixtures.notes import NOTES, Note
from tests.pgbouncer import needs_pgbouncer, pgbouncer, pooled
from tests.test_models.test_migrations import alembic


@needs_pgbouncer
async def test_requests(app: FastAPI, pooler_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "POOL_TIMEOUT_SECONDS", 60)  # on a busy machine
    async with (
        open_database(pooler_url, pool_size=5) as one,
        open_database(pooler_url, pool_size=5) as two,  # as in another process
    ):
        clients = [connect(app, one), connect(app, two)]

        async def write_and_read(n: int) -> None:
            client = clients[n % 2]
            created = await client.post(NOTES, json={"text": f"Lamp {n}"})
            assert created.status_code == 201
            read = await client.get(created.headers["location"])
            assert (read.status_code, read.json()["text"]) == (200, f"Lamp {n}")

        await asyncio.gather(*map(write_and_read, range(40)))


async def test_without_the_setting_the_error_names_it(committing_url: URL) -> None:
    async with (
        open_database(committing_url, pool_size=1) as database,
        database.reads() as session,
    ):
        statement = text("SELECT 1")
        await session.execute(statement)
        await session.execute(text("DEALLOCATE ALL"))  # another server does not have it, either
        with pytest.raises(DatabaseUnavailableError, match="set DATABASE_POOLER=true"):
            await session.execute(statement)


@pytest.mark.parametrize(
    "variables",
    [
        {"DATABASE_POOLER": "true"},
        {"DATABASE_URL": "postgresql://me:s@db/app?pgbouncer=true"},
        {"DATABASE_URL": "postgresql://me:s@db/app?statement_cache_size=0"},
        {"DATABASE_URL": "postgresql://me:s@db/app?prepared_statement_cache_size=0"},
    ],
)
def test_settings(env: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        env.setenv(name, value)

    _, arguments = connection.split(load_settings().database_url)

    assert arguments["statement_cache_size"] == arguments["prepared_statement_cache_size"] == 0


@needs_pgbouncer
async def test_reads_commit_each_statement_and_stream(pooler_url: URL) -> None:
    async with open_database(pooler_url, pool_size=2) as database:
        async with database.reads() as session:
            await session.execute(insert(Note).values(text="Lamp", version=1))
        async with database.streams() as session:
            await session.execute(text("SET LOCAL lock_timeout = '5s'"))
            notes = await session.stream_scalars(select(Note))
            assert [note.text async for note in notes] == ["Lamp"]
            assert await session.scalar(text("SHOW lock_timeout")) == "5s"
        async with database.reads() as session:
            assert await session.scalar(text("SHOW lock_timeout")) == "0"


@needs_pgbouncer
async def test_no_free_connection_of_the_pooler_is_a_temporary_error(committing_url: URL) -> None:
    settings = "default_pool_size = 1\nquery_wait_timeout = 1\n"
    async with (
        pgbouncer(committing_url, settings=settings) as url,
        open_database(pooled(url), pool_size=2) as database,
        database.transaction() as busy,
    ):
        await busy.execute(text("SELECT 1"))
        async with database.reads() as session:
            with pytest.raises(DatabaseUnavailableError):
                await session.execute(text("SELECT 1"))


@needs_pgbouncer
async def test_replicas_can_migrate_at_the_same_time(fresh_url: URL, tmp_path: Path) -> None:
    await alembic("downgrade", fresh_url, "base")
    async with pgbouncer(fresh_url) as url:
        variables = {
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "DATABASE_POOLER": "true",
        }
        replicas = [
            Process("cli.py", "db", "migrate", log=tmp_path / f"{n}.log", **variables)
            for n in range(2)
        ]
        for replica in replicas:
            status = await asyncio.to_thread(replica.wait, LIMIT)
            replica.kill()
            assert status == 0, replica.log_text
    await alembic("check", fresh_url)


MIGRATION = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "concurrent", None, None, None

def upgrade():
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY ix_note_text ON test.note (text)")
"""


@needs_pgbouncer
async def test_an_index_can_be_created_concurrently(fresh_url: URL, tmp_path: Path) -> None:
    """The connection with the migration lock does not block it."""
    (tmp_path / "concurrent.py").write_text(MIGRATION)
    async with pgbouncer(fresh_url) as url, asyncio.timeout(LIMIT):
        config = Config(ROOT / "alembic.ini", attributes={"url": pooled(url)})
        folders = f"{ROOT / 'alembic/versions'}{os.pathsep}{tmp_path}"
        config.set_main_option("version_locations", folders)
        await asyncio.to_thread(command.upgrade, config, "concurrent")
