"""Migrations."""

import asyncio
import multiprocessing
from contextlib import suppress
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, text

from src.core.config import ROOT
from src.db.session import open_database
from src.db.setup import create_database, drop_database

REPLICAS = 10


def run(name: str, url: URL, *arguments: str) -> None:
    config = Config(ROOT / "alembic.ini", attributes={"url": url})
    getattr(command, name)(config, *arguments)


async def alembic(name: str, url: URL, *arguments: str) -> None:
    """Run a command in a thread, since Alembic starts an event loop."""
    await asyncio.to_thread(run, name, url, *arguments)


async def test_downgrade_and_upgrade_result_in_the_models(fresh_url: URL) -> None:
    with suppress(NotImplementedError):  # a migration may be irreversible
        await alembic("downgrade", fresh_url, "base")
    await alembic("upgrade", fresh_url, "head")
    await alembic("check", fresh_url)


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
