"""Migrations."""

import asyncio
import multiprocessing
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, select, text
from sqlalchemy.exc import DBAPIError

from src.core.config import ROOT
from src.db.session import Database, open_database
from src.db.setup import create_database, drop_database
from tests.fixtures.notes import Note
from tests.fixtures.statements import until_waiting

REPLICAS = 10


def run(name: str, url: URL, *arguments: str, more: Path | None = None) -> None:
    config = Config(ROOT / "alembic.ini", attributes={"url": url})
    if more:  # a folder with more migrations
        folders = os.pathsep.join([str(ROOT / "alembic/versions"), str(more)])
        config.set_main_option("version_locations", folders)
    getattr(command, name)(config, *arguments)


async def alembic(name: str, url: URL, *arguments: str, more: Path | None = None) -> None:
    """Run a command in a thread, since Alembic starts an event loop."""
    await asyncio.to_thread(run, name, url, *arguments, more=more)


async def test_downgrade_and_upgrade_result_in_the_models(fresh_url: URL) -> None:
    with suppress(NotImplementedError):  # a migration may be irreversible
        await alembic("downgrade", fresh_url, "base")
    await alembic("upgrade", fresh_url, "head")
    await alembic("check", fresh_url)


def head() -> str | None:
    return ScriptDirectory.from_config(Config(ROOT / "alembic.ini")).get_current_head()


async def applied(url: URL) -> str | None:
    async with open_database(url, pool_size=1) as database, database.reads() as session:
        version: str | None = await session.scalar(text("SELECT version_num FROM alembic_version"))
        return version


async def test_database_of_another_branch_is_explained(fresh_url: URL) -> None:
    async with open_database(fresh_url, pool_size=1) as database, database.transaction() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = 'deadbeef0000'"))

    explained = f"'deadbeef0000'\\n.*\\n.*`alembic downgrade {head()}`"
    for arguments in (("upgrade", "head"), ("downgrade", "-1"), ("check",), ("current",)):
        with pytest.raises(CommandError, match=explained):
            await alembic(arguments[0], fresh_url, *arguments[1:])


MIGRATION = """
from alembic import op
revision = "deadbeef0000"
down_revision = {down!r}
def upgrade():
    op.execute("CREATE TABLE half ()")
    op.execute("SELECT 1 / 0")
"""


async def test_two_heads_are_explained(fresh_url: URL, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(MIGRATION.format(down=None))

    with pytest.raises(CommandError, match="`alembic merge heads -m merge`"):
        await alembic("upgrade", fresh_url, "head", more=tmp_path)


async def test_a_model_without_a_table_is_reported(
    fresh_url: URL, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example, its migration precedes the database's revision, so it has not run."""
    async with open_database(fresh_url, pool_size=1) as database, database.transaction() as session:
        await session.execute(text("DROP TABLE idempotency_key"))

    await alembic("upgrade", fresh_url, "head")

    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "tables_missing" in line]
    assert "idempotency_key" in warning
    assert "make relink" in warning


async def test_failed_migration_changes_nothing(fresh_url: URL, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(MIGRATION.format(down=head()))

    with pytest.raises(DBAPIError, match="division by zero") as caught:
        await alembic("upgrade", fresh_url, "head", more=tmp_path)

    assert "rolled back" in caught.value.__notes__[0]
    assert await applied(fresh_url) == head()


ADD_COLUMN = """
from alembic import op
revision, down_revision, branch_labels, depends_on = "column", None, None, None
def upgrade():
    op.execute("CREATE TABLE first ()")
    op.execute("ALTER TABLE test.note ADD COLUMN added int")
"""
CREATE_INDEX = """
from alembic import op
revision, down_revision, branch_labels, depends_on = "index", None, None, None
def upgrade():
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY added ON test.note (text)")
"""


@asynccontextmanager
async def migrating_behind_a_reader(
    url: URL, revision: str, folder: Path
) -> AsyncGenerator[Database]:
    """Migrate while a transaction reads the table. The block ends it, then the migration ends."""
    async with open_database(url, pool_size=3) as database:
        async with database.streams() as reader:
            await reader.execute(select(Note))
            migrating = asyncio.create_task(alembic("upgrade", url, revision, more=folder))
            yield database
        await migrating


@pytest.mark.slow
async def test_migration_that_waits_for_a_lock_lets_other_queries_run(
    fresh_url: URL, tmp_path: Path
) -> None:
    (tmp_path / "column.py").write_text(ADD_COLUMN)
    async with migrating_behind_a_reader(fresh_url, "column", tmp_path) as database:
        for _ in range(2):
            await until_waiting(database, 1)
            await until_waiting(database, 0)
        async with database.reads() as session:
            assert (await session.scalars(select(Note))).all() == []
    async with open_database(fresh_url, pool_size=1) as database, database.reads() as session:
        assert await session.scalar(text("SELECT count(added) FROM test.note, first")) == 0


@pytest.mark.slow
async def test_an_index_is_created_concurrently_behind_a_long_transaction(
    fresh_url: URL, tmp_path: Path
) -> None:
    (tmp_path / "index.py").write_text(CREATE_INDEX)
    async with migrating_behind_a_reader(fresh_url, "index", tmp_path) as database:
        await until_waiting(database, 1)
        await asyncio.sleep(1.5)  # longer than the limit for other locks


@pytest.mark.slow
async def test_ten_replicas_can_migrate_at_the_same_time(fresh_url: URL) -> None:
    empty = fresh_url.set(database=f"{fresh_url.database}_new")
    await create_database(empty)
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    # With a fork server, the modules are imported once instead of ten times.
    context.set_forkserver_preload(["cli", "alembic.autogenerate"])
    replicas = [
        # Daemonic, so that the test run does not wait for a process that hangs.
        context.Process(target=run, args=("upgrade", empty, "head"), daemon=True)
        for _ in range(REPLICAS)
    ]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        await asyncio.to_thread(replica.join, 60)

    assert [replica.exitcode for replica in replicas] == [0] * REPLICAS
    async with open_database(empty, pool_size=1) as database, database.reads() as session:
        assert await session.scalar(text("SELECT count(*) FROM alembic_version")) == 1
    await drop_database(empty)
