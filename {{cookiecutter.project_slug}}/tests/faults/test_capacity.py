"""The arithmetic of `docs/capacity.md`, and the connections of a process under load."""

import asyncio
import re
from pathlib import Path

import pytest
from httpx import AsyncClient
from sqlalchemy import URL, text

from src.core.config import Settings
from src.db import open_database
from src.db.session import EXPENSIVE_READS
from tests.faults.servers import api
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT
from tests.fixtures.environment import API
from tests.fixtures.pages import blocks, read_page
from tests.pgbouncer import needs_pgbouncer, pgbouncer, pooled

pytestmark = pytest.mark.slow
POOL_SIZE = Settings.model_fields["DATABASE_POOL_SIZE"].default
FORMULA = r"\(DATABASE_POOL_SIZE \+ (\d+)\) \+ (\d+) ≤ max_connections"
COUNT = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def numbers(pattern: str) -> list[int]:
    """Return the numbers at the groups of the pattern, which the page contains once."""
    [found] = re.finditer(pattern, read_page("capacity.md"))
    return [int(number) for number in found.groups()]


def test_the_examples_follow_the_formula() -> None:
    more, others = numbers(FORMULA)
    assert others == sum(numbers(r"migration \((\d)\), a backup \((\d)\), .* superusers \((\d)\)"))
    each = numbers(
        r"(\d) for \[expensive.*, (\d) for readiness, (\d) for \[API keys.*, (\d) for background"
    )
    assert (each[0], more) == (EXPENSIVE_READS, sum(each))
    row = re.compile(r"^\| ([^|]*) \| (\d+) \| (\d+) \| (\d+|Use a pooler\.) \|$", re.MULTILINE)
    rows = row.findall(read_page("capacity.md"))
    assert (rows[0][1], rows[0][3]) == (str(POOL_SIZE), "100")  # the defaults
    for processes, pool_size, connections, limit in rows:
        count = sum(map(int, re.findall(r"\d+", processes)))
        assert int(connections) == count * (int(pool_size) + more) + others
        assert not limit.isdecimal() or int(connections) <= int(limit)


async def test_a_process_opens_no_more_connections_than_documented(
    fresh_url: URL, tmp_path: Path
) -> None:
    """All pools are full: every further request waits, or gets 503."""
    documented = POOL_SIZE + numbers(FORMULA)[0]
    least = POOL_SIZE + EXPENSIVE_READS + 1
    url = fresh_url.render_as_string(hide_password=False)
    application = "tests.faults.endless:application"
    async with (
        open_database(fresh_url, pool_size=1) as database,
        api(application, folder=tmp_path, DATABASE_URL=url) as (process, address),
        AsyncClient(base_url=address, headers=HEADERS, timeout=LIMIT) as client,
    ):
        paths = ["/in-database"] * POOL_SIZE * 2 + ["/expensive"] * EXPENSIVE_READS * 2
        requests = [asyncio.create_task(client.get(path)) for path in paths]
        await asyncio.to_thread(process.wait_for_log, "endless_request_started")
        assert (await client.get(f"{API}/health/ready")).status_code == 200
        counts = [0]
        async with asyncio.timeout(LIMIT), database.reads() as session:
            while len(counts) < 20 or max(counts) < least:
                counts.append(await session.scalar(COUNT) or 0)
                await asyncio.sleep(0.05)
        metrics = (await client.get("/metrics")).text
        for request in requests:
            request.cancel()

    assert max(counts) <= documented
    page = read_page("capacity.md")
    for name in re.findall(r"`((?:http|process)_\w+)`", page):
        assert name in metrics


@needs_pgbouncer
async def test_the_settings_of_pgbouncer_work(committing_url: URL) -> None:
    [settings] = blocks("capacity.md", "ini")
    settings = settings.partition("[pgbouncer]\n")[2]
    async with (
        pgbouncer(committing_url, settings=settings) as url,
        open_database(pooled(url), pool_size=1) as database,
        database.transaction() as db,
    ):
        assert await db.scalar(text("SELECT 1")) == 1
