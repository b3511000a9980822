import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from dev.valkey import embedded_valkey
from tests.test_dev.processes import end, eventually, owner, reported_by, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no wheel"),
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


def test_server_stops_when_its_owner_is_killed(tmp_path: Path) -> None:
    """Its socket is private. A new server on the same data has them."""
    with owner(OWNER, tmp_path) as process:
        url = reported_by(process)
        pid = ask(url, "INFO", "server")["process_id"]
        run = Path(url.removeprefix("unix://")).parent
        assert run.stat().st_mode & 0o777 == 0o700
        assert ask(url, "CONFIG", "GET", "port") == {b"port": b"0"}
        ask(url, "SET", "key", "stored")
        end(process, signal.SIGKILL)
        with embedded_valkey(data=tmp_path) as again:
            assert ask(again, "GET", "key") == b"stored"
        wait_until_gone(pid)
        eventually(lambda: not run.exists(), "removal of the temporary folder")
