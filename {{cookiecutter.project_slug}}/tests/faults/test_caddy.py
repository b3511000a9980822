"""The API behind Caddy, with the project's `Caddyfile`."""

import asyncio
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from httpx import AsyncClient
from sqlalchemy import URL

from src.core.config import ROOT
from tests.caddy import PROGRAM, caddy, needs_caddy
from tests.faults.load import Load, Notes
from tests.faults.servers import APPLICATION, api
from tests.faults.test_rolling_restart import Instance, live
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES

pytestmark = [pytest.mark.slow, needs_caddy]


def test_the_file_is_valid_and_formatted() -> None:
    file = ROOT / "Caddyfile"
    command = [str(PROGRAM), "fmt", str(file)]
    formatted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert formatted == file.read_text(encoding="utf-8")


async def test_no_request_fails_while_the_only_instance_is_replaced(
    committing_url: URL, tmp_path: Path
) -> None:
    """New requests wait until it runs again."""
    url = committing_url.render_as_string(hide_password=False)
    variables = {"DATABASE_URL": url, "SHUTDOWN_DELAY_SECONDS": "2"}
    instance = Instance(tmp_path, application=APPLICATION, **variables)
    instance.start()
    try:
        instance.process.wait_for_log("Uvicorn running on")
        with caddy(f"127.0.0.1:{instance.port}", tls=False, keepalive="1s") as (address, _):
            load = Load(address, live, Notes().write)
            async with load.running():
                await instance.stop()
                await asyncio.sleep(1)  # a container takes longer to start than a process
                instance.start()
                await load.succeeds()
    finally:
        instance.process.kill()

    assert load.results.keys() == {200, 201}, load.results


async def test_only_clients_requests_reach_the_api(
    committing_url: URL, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    variables = {"DATABASE_URL": url, "HSTS_SECONDS": "60", "MAX_BODY_SIZE": "1000"}
    variables["API_KEYS"] = "hunter2"
    forged = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http"}
    secret = {"X-API-Key": "hunter2"}
    async with api(APPLICATION, folder=tmp_path, **variables) as (process, server):
        with caddy(urlsplit(server).netloc, max_size="2KB") as (address, trust):
            client = AsyncClient(base_url=address, headers=HEADERS, verify=trust, timeout=LIMIT)
            async with client:
                found = await client.get(f"{API}/health/live", headers=forged)
                hidden = [await client.get(f"{path}/metrics") for path in ("", "/", "/%6D/..")]
                long = await client.get(NOTES, headers={"X-Long": "a" * 40_000})
                refused = await client.post(NOTES, content=b"x" * 1500, headers=secret)
                path = f"{NOTES}?token=hunter2"
                cut_off = await client.post(path, content=b"x" * 10**6, headers=secret)

    assert found.status_code == 200
    assert found.headers["strict-transport-security"] == "max-age=60"
    assert found.headers["alt-svc"].startswith(f'h3=":{urlsplit(address).port}"')
    assert [response.status_code for response in hidden] == [404] * 3
    assert "192.0.2.1" not in process.log_text
    assert "/metrics" not in process.log_text
    assert long.status_code == 431
    assert (refused.status_code, refused.json()["status"]) == (413, 413)
    assert cut_off.status_code == 413
    assert "hunter2" not in "".join(capfd.readouterr())


async def test_a_stream_arrives_at_once_and_ends_when_the_client_disconnects(
    committing_url: URL, tmp_path: Path
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    application = "tests.faults.endless:application"
    async with api(application, folder=tmp_path, DATABASE_URL=url) as (process, server):
        with caddy(urlsplit(server).netloc) as (address, trust):
            client = AsyncClient(base_url=address, headers=HEADERS, verify=trust, timeout=LIMIT)
            async with client, client.stream("GET", "/streaming") as response:
                assert await anext(response.aiter_text()) == "first line"
            await asyncio.to_thread(process.wait_for_log, "endless_stream_ended")


async def test_slow_headers_end_the_connection() -> None:
    with caddy("127.0.0.1:9", read_header="1s") as (address, trust):
        async with asyncio.timeout(LIMIT):
            reader, writer = await asyncio.open_connection(
                "localhost", urlsplit(address).port, ssl=trust
            )
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1")
            with suppress(ConnectionError, ssl.SSLError):
                assert await reader.read() == b""
        writer.close()
