"""The embedded Valkey: real, and never left behind."""

import asyncio
import importlib.util
import json
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from dev import stack
from dev.stack import Program
from dev.valkey import ValkeyError, embedded_valkey
from tests.test_dev.processes import Owner, eventually, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="there is no wheel"),
]

OWNER = """
from dev.valkey import embedded_valkey
with embedded_valkey() as url:
    tell(url)
    sys.stdin.read()
"""
# It tells a file what it was given.
TELLING = """
import json, os, sys
names = ("REDIS_URL", "CACHE_BACKEND_TYPE")
with open(sys.argv[1], "w") as file:
    json.dump([os.environ.get(name) for name in names] + [open(sys.argv[2]).read()], file)
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
        ask(url, "SET", "key", "value")
        assert folder_of(url).stat().st_mode & 0o777 == 0o700
        assert ask(url, "CONFIG", "GET", "port") == {b"port": b"0"}
    wait_until_gone(pid)
    assert not folder_of(url).exists()


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_however_its_owner_dies(death: signal.Signals) -> None:
    with Owner(OWNER) as owner:
        (url,) = owner.told()
        pid = ask(url, "INFO", "server")["process_id"]
        owner.send(death)
        wait_until_gone(pid)
        eventually(lambda: not folder_of(url).exists(), "removal of the temporary folder")


def test_long_temporary_folder_is_not_used_for_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*["a folder with a long name"] * 6)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with embedded_valkey() as url:
        assert ask(url, "PING")


def test_server_that_cannot_start_is_explained() -> None:
    with (
        pytest.raises(ValkeyError, match=r"Valkey cannot be started here \(.*nonsense"),
        embedded_valkey(["--nonsense", "yes"]),
    ):
        pass


def test_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    advice = "is not installed, .* set REDIS_HOST or REDIS_URL to a server of your own"
    with pytest.raises(ValkeyError, match=advice), embedded_valkey():
        pass


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for what the one program of a stack in this process is told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@nowhere/app")
    monkeypatch.setenv("CACHE_BACKEND_TYPE", "redis")
    monkeypatch.setattr(stack, "DEV_ENV_FILE", tmp_path / "dev.env")
    monkeypatch.setattr(stack, "_migrate", lambda _url: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path / "told"


def run(told: Path) -> tuple[str | None, str | None, str]:
    told.with_name("dev.env").touch()
    program = Program("telling", ("-c", TELLING, str(told), str(told.with_name("dev.env"))))
    assert stack.run_stack([program]) == 0
    url, backend, file = json.loads(told.read_text())
    return url, backend, file


def test_dev_tells_programs_and_other_terminals_where_it_is(told: Path) -> None:
    url, backend, file = run(told)
    assert url is not None
    assert url.startswith("unix://")
    assert backend == "redis"
    assert file == f"REDIS_URL={url}\n"
    assert not told.with_name("dev.env").exists()
    assert not folder_of(url).exists()


def test_dev_starts_none_where_one_is_named(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://nowhere")
    assert run(told) == ("redis://nowhere", "redis", "")


def test_dev_goes_on_without_the_wheel(
    told: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert run(told) == (None, "memory", "CACHE_BACKEND_TYPE=memory\n")
    assert "Until then, each process caches in its own memory." in capsys.readouterr().err
