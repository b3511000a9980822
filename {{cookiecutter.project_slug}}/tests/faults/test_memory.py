"""Many different requests do not fill the memory."""

import asyncio
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlalchemy import URL

from tests.faults.servers import APPLICATION, api
from tests.fixtures.commands import Process
from tests.fixtures.notes import NOTES

pytestmark = pytest.mark.slow
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_many_requests_do_not_fill_the_memory(committing_url: URL, tmp_path: Path) -> None:
    """They have different paths, queries, request IDs and trace IDs."""
    url = committing_url.render_as_string(hide_password=False)
    variables = {"DATABASE_URL": url, "LOG_LEVEL": "WARNING"}
    async with api(APPLICATION, folder=tmp_path, **variables) as (process, address):
        await send_many(address, 1_000)
        before = resident_kilobytes(process)
        await send_many(address, 3_000)
        grown = resident_kilobytes(process) - before

    assert grown < 5_000


async def send_many(address: str, count: int) -> None:
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for number in range(count):
        path = f"/{number}?q={number}" if number % 3 else NOTES
        head = f"GET {path} HTTP/1.1\r\nHost: test\r\nX-Request-ID: {uuid4()}\r\n"
        writer.write(f"{head}traceparent: 00-{uuid4().hex}-{'1' * 16}-01\r\n\r\n".encode())
        length = LENGTH.search(await reader.readuntil(b"\r\n\r\n"))
        assert length
        await reader.readexactly(int(length[1]))
    writer.close()


def resident_kilobytes(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])
