"""What the embedded servers share."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev.supervisor import POSIX

if sys.platform != "win32":
    import fcntl

RELEASE_LIMIT = 15.0  # seconds granted to a server that is still leaving the same data
POLL = 0.01
SOCKET_FOLDER_LIMIT = 60  # a socket's path must stay below 104 bytes (macOS; Linux: 108)


class ServerError(Exception):
    """A server cannot be started; the message is one sentence for the developer."""


@dataclass(frozen=True)
class Kind:
    """A kind of server: how its log tells that one is ready, or why it is not."""

    name: str
    instead: str  # what to set where none can be started
    ready: str  # a pattern, and the next one too
    errors: str = "(?!)"  # lines that say why it ended; where there are none, the last ones do

    def find_wheel(self, name: str) -> Path:
        """Find the package that a wheel brought; to import it would start its own management."""
        package = importlib.util.find_spec(name.replace("-", "_"))
        if not package or not package.submodule_search_locations:
            raise self.error(f"the wheel {name} is not installed")
        return Path(package.submodule_search_locations[0])

    def wait_until_ready(self, server: subprocess.Popen[bytes], log: Path) -> None:
        while not re.search(self.ready, words := log.read_text(errors="replace")):
            if server.poll() is not None:
                raise self.error(self.last_words(words))
            time.sleep(POLL)

    def last_words(self, log: str) -> str:
        lines = re.findall(self.errors, log)[:3] or log.strip().splitlines()[-5:]
        return " / ".join(lines) or "it did not say why"

    def error(self, reason: object) -> ServerError:
        words = str(reason).rstrip(".")
        return ServerError(f"{self.name} cannot be started here ({words}); set {self.instead}.")


@contextmanager
def locked(folder: Path, limit: float | None = None) -> Iterator[int | None]:
    """Let one process at a time use the folder, which is made unless it exists.

    It waits up to `limit` seconds until another has left. A command that runs with this
    lock, see `supervised()`, holds it too, until the last of its processes has ended.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY) if POSIX else None
    except OSError as error:
        raise ServerError(f"{folder} cannot be used: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + (RELEASE_LIMIT if limit is None else limit)
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                message = f"{folder} is already in use by another process; stop that one first."
                raise ServerError(message)
            time.sleep(POLL)
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int | None) -> bool:
    if sys.platform != "win32" and descriptor is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
    return True


@contextmanager
def run_folder(prefix: str, *, for_all: bool = False) -> Iterator[Path]:
    """Make a folder for a server's socket and log; unless `for_all` to pass, a private one."""
    home = tempfile.gettempdir()
    if POSIX and (for_all or len(os.fsencode(home)) > SOCKET_FOLDER_LIMIT):
        home = "/tmp"  # noqa: S108 - mkdtemp() comes next
    run = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    try:
        run.chmod(0o711 if for_all else 0o700)
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
