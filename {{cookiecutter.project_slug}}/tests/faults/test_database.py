"""Failures of PostgreSQL and of API processes under load: no acknowledged write is lost."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from httpx import AsyncClient
from sqlalchemy import URL, make_url

from dev.postgres import embedded_postgres
from src.core.config import ROOT
from src.db.session import open_database
from tests.faults.conftest import Report
from tests.faults.load import Load, Notes
from tests.faults.servers import APPLICATION, Server, api, children, serving
from tests.fixtures import notes
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT
from tests.fixtures.notes import NOTES
from tests.proxy import Stream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's"),
]


async def connect(url: str) -> Stream:
    return await asyncio.open_unix_connection(f"{make_url(url).query['host']}/.s.PGSQL.5432")


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    """A server that stores data as in production, unlike the one of other tests."""
    data = tmp_path_factory.mktemp("postgres") / "data"
    async with serving(Server(partial(embedded_postgres, data), connect)) as server:
        yield server


@pytest.fixture(scope="module")
async def url(server: Server) -> URL:
    url = make_url(f"postgresql+asyncpg://postgres@127.0.0.1:{server.proxy.port}/postgres")
    config = Config(ROOT / "alembic.ini", attributes={"url": url})
    await asyncio.to_thread(command.upgrade, config, "head")
    await notes.create_tables(url)
    return url.update_query_dict({"command_timeout": "2"})


async def test_no_acknowledged_write_is_lost(
    server: Server, url: URL, tmp_path: Path, report: Report
) -> None:
    """And the first request after a restart, while no one sends requests, succeeds."""
    async with (
        api(APPLICATION, folder=tmp_path, DATABASE_URL=text_of(url)) as (_, address),
        AsyncClient(base_url=address, headers=HEADERS, timeout=LIMIT) as client,
    ):
        for fault in ("killed", "stopped", "frozen", "cut off"):
            steps = Notes()
            load = Load(address, steps.write, steps.read)
            async with load.running():
                await server.fail(fault)
                await load.recovers()

            assert load.results.keys() <= {200, 201, 503}, (fault, load.results)
            report(f"PostgreSQL is {fault}", load, await kept(steps, url))

        requests = [client.get(NOTES) for _ in range(20)]
        assert {each.status_code for each in await asyncio.gather(*requests)} == {200}
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        assert (await client.get(NOTES)).status_code == 200


async def test_killed_api_process_loses_no_acknowledged_write(
    url: URL, tmp_path: Path, report: Report
) -> None:
    steps, variables = Notes(), {"DATABASE_URL": text_of(url)}
    async with api(APPLICATION, "--workers", "2", folder=tmp_path, **variables) as found:
        process, address = found
        load = Load(address, steps.write, steps.read)
        async with load.running():
            os.kill(children()[process.pid][-1], signal.SIGKILL)
            await load.recovers()

    assert 500 not in load.results, load.results
    report("One of two API processes is killed", load, await kept(steps, url))


async def kept(steps: Notes, url: URL) -> str:
    """Check that no acknowledged write is lost; return their number for the table."""
    async with open_database(url, pool_size=1) as database:
        assert await steps.lost(database) == set()
    return f"{len(steps.acknowledged):,} writes"


def text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)
