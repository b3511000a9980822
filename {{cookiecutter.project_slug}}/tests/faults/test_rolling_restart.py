"""Restarts of instances behind HAProxy, and what clients see of them."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from httpx import AsyncClient, Response, TransportError
from sqlalchemy import URL

from tests.faults.conftest import Report
from tests.faults.load import Load
from tests.fixtures.client import HEADERS
from tests.fixtures.commands import LIMIT, Process, free_port, is_free
from tests.fixtures.environment import API
from tests.haproxy import haproxy, needs_haproxy

pytestmark = pytest.mark.slow
PATHS = ["/sleeping", "/in-thread", "/in-database", "/in-transaction"]  # of `endless.py`


class Instance:
    def __init__(self, folder: Path, *flags: str, application: str = "", **variables: str) -> None:
        self.port = free_port()
        command = ("-m", "uvicorn", "--factory", application) if application else ("cli.py", "api")
        self._arguments = (*command, "--port", self.port, *flags)
        self._log = folder / self.port
        self._variables = variables

    def start(self) -> None:
        self._log.unlink(missing_ok=True)
        self.process = Process(*self._arguments, log=self._log, **self._variables)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        await asyncio.to_thread(self.process.wait, LIMIT)
        self.process.kill()


async def live(client: AsyncClient) -> Response:
    return await client.get(f"{API}/health/live")


async def wait_for(address: str, server: str) -> None:
    """Wait until HAProxy sends requests to the server."""
    async with asyncio.timeout(LIMIT), AsyncClient(base_url=address, headers=HEADERS) as client:
        while True:
            with suppress(TransportError):  # HAProxy is not listening yet
                response = await client.get(f"{API}/health/live")
                if response.status_code == 200 and response.headers["x-server"] == server:
                    return
            await asyncio.sleep(0.05)


@needs_haproxy
async def test_no_request_fails_in_a_rolling_restart(
    committing_url: URL, tmp_path: Path, report: Report
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    variables = {"DATABASE_URL": url, "SHUTDOWN_DELAY_SECONDS": "6"}
    instances = {
        "api1": Instance(tmp_path, **variables),
        "api2": Instance(tmp_path, "--workers", "2", **variables),
    }
    try:
        for instance in instances.values():
            instance.start()
        with haproxy(*(f"127.0.0.1:{each.port}" for each in instances.values())) as address:
            load = Load(address, live)
            for name in instances:
                await wait_for(address, name)
            async with load.running():
                for name, instance in instances.items():
                    await instance.stop()
                    instance.start()
                    await wait_for(address, name)
    finally:
        for instance in instances.values():
            instance.process.kill()

    assert load.results.keys() == {200}, load.results
    report("Rolling restart of two instances, one with `--workers 2`", load)


async def test_requests_that_are_cut_off_get_a_problem(committing_url: URL, tmp_path: Path) -> None:
    url = committing_url.render_as_string(hide_password=False)
    port = free_port()
    arguments = ("-m", "uvicorn", "tests.faults.endless:app", "--port", port)
    process = Process(
        *arguments, "--timeout-graceful-shutdown", "1", log=tmp_path / "log", DATABASE_URL=url
    )
    try:
        process.wait_for_log("Uvicorn running on")
        async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as client:
            requests = [asyncio.create_task(client.get(path)) for path in PATHS]
            async with asyncio.timeout(LIMIT):
                while process.log_text.count("endless_request_started") < len(PATHS):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            responses = await asyncio.gather(*requests)
        await asyncio.to_thread(process.wait, LIMIT)
    finally:
        process.kill()

    for response in responses:
        assert response.status_code == 503, (response.url, process.log_text)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["connection"] == "close"
        assert response.headers["retry-after"] == "1"


async def test_readiness_fails_first_and_requests_succeed_until_the_end_of_the_delay(
    committing_url: URL, tmp_path: Path
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    instance = Instance(tmp_path, DATABASE_URL=url, SHUTDOWN_DELAY_SECONDS="600")
    instance.start()
    try:
        instance.process.wait_for_log("Uvicorn running on")
        address = f"http://127.0.0.1:{instance.port}{API}/health"
        async with AsyncClient(headers=HEADERS, timeout=LIMIT) as client:
            assert (await client.get(f"{address}/ready")).status_code == 200

            for _ in range(2):  # systemd sends SIGTERM twice
                instance.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(instance.process.wait_for_log, "api_stopping")
            ready = await client.get(f"{address}/ready")
            live = await client.get(f"{address}/live")
        await instance.stop(signal.SIGINT)  # Ctrl-C does not wait
    finally:
        instance.process.kill()

    assert (ready.status_code, ready.json()["checks"]) == (503, {"server": "unavailable"})
    assert (live.status_code, live.headers["connection"]) == (200, "close")


async def test_processes_of_a_killed_parent_stop_and_free_the_port(
    committing_url: URL, tmp_path: Path
) -> None:
    url = committing_url.render_as_string(hide_password=False)
    variables = {"DATABASE_URL": url, "SHUTDOWN_DELAY_SECONDS": "600"}
    instance = Instance(tmp_path, "--workers", "2", **variables)
    instance.start()
    process = instance.process
    try:
        async with asyncio.timeout(LIMIT):
            while process.log_text.count("startup complete") < 2:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            while process.log_text.count("api_stopped") < 2:  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.05)
            while not is_free(int(instance.port)):  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.05)
    finally:
        process.kill()
