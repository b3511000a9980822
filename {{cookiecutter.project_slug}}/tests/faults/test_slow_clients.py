"""Clients that send their headers slowly or without an end, and a log that no one reads."""

import asyncio
import os
import subprocess
import sys
from urllib.parse import urlsplit

import httpx
import pytest

from src.core.config import ROOT
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT, free_port, serving
from tests.fixtures.environment import API
from tests.haproxy import haproxy, needs_haproxy
from tests.process_killer import ProcessKiller

pytestmark = pytest.mark.slow


@needs_haproxy
@pytest.mark.parametrize(
    ("headers", "status"), [(b"X-Slow: 1", b" 408 "), (b"X-Long: " + b"a" * 100_000, b" 400 ")]
)
async def test_the_proxy_ends_connections_without_complete_headers(
    headers: bytes, status: bytes
) -> None:
    with serving() as (_, server), haproxy(urlsplit(server).netloc, http_request="1s") as address:
        port = urlsplit(address).port
        async with asyncio.timeout(LIMIT):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n" + headers)
            response = await reader.readline()
        writer.close()

    assert status in response


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can open a pipe again")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_api_runs_and_stops_while_no_one_reads_its_log(workers: str) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "cli.py", "api", "--port", port, "--workers", workers],
        cwd=ROOT,
        env=os.environ | {"LOG_LEVEL": "INFO"},
        stderr=subprocess.PIPE,  # no one reads it after the start
        start_new_session=True,
    )
    killer = ProcessKiller(process.pid)
    assert process.stderr
    try:
        log = b""
        while not (b"startup complete" in log and b"Uvicorn running on" in log):
            log += process.stderr.readline()
            assert process.poll() is None
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:
            for number in range(100):  # a line of each: 400 KB, more than a pipe holds
                path = f"{API}/{number}/{'a' * 4000}"
                assert client.get(path, timeout=LIMIT).status_code == 404
        process.terminate()
        process.wait(LIMIT)
    finally:
        killer.kill()
        process.wait()
        process.stderr.close()
