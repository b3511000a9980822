"""Helpers for the embedded servers."""

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

LOCK_TIMEOUT_SECONDS = 15.0  # a previous server may still be stopping
POLL = 0.01
MAX_FOLDER_LENGTH = 60  # the path of a Unix socket is limited to 104 bytes on macOS


class ServerError(Exception):
    """A server cannot start. The message says why, and what to do."""


@dataclass(frozen=True)
class ServerKind:
    """What the log of a server looks like when it is ready, or when it fails."""

    name: str
    alternative: str  # what to do if the server cannot start
    ready: str  # a regular expression
    errors: str = "(?!)"  # a regular expression; without a match, the last lines are the reason

    def find_wheel(self, name: str) -> Path:
        """Return the directory of the wheel's package, without importing it."""
        package = importlib.util.find_spec(name.replace("-", "_"))
        if not package or not package.submodule_search_locations:
            raise self.error(f"the wheel {name} is not installed")
        return Path(package.submodule_search_locations[0])

    def wait_until_ready(self, server: subprocess.Popen[bytes], log: Path) -> None:
        while not re.search(self.ready, text := log.read_text(errors="replace")):
            if server.poll() is not None:
                raise self.error(self.failure_reason(text))
            time.sleep(POLL)

    def failure_reason(self, log: str) -> str:
        lines = re.findall(self.errors, log)[:3] or log.strip().splitlines()[-5:]
        return " / ".join(lines) or "its log is empty"

    def error(self, reason: object) -> ServerError:
        text = str(reason).rstrip(".")
        return ServerError(f"Cannot start {self.name}: {text}. {self.alternative}")


@contextmanager
def locked(folder: Path, timeout: float | None = None) -> Iterator[int | None]:
    """Lock the directory for this process, and create it if it does not exist.

    Waits up to `timeout` seconds for another process. Yields a file descriptor: a command that gets
    it through `supervised(lock=...)` shares the lock until its last process ends.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY) if POSIX else None
    except OSError as error:
        raise ServerError(f"{folder} cannot be used: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + (LOCK_TIMEOUT_SECONDS if timeout is None else timeout)
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                message = f"{folder} is already in use by another process. Stop that process first."
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
            pass  # this file system has no locks
    return True


@contextmanager
def run_folder(prefix: str, *, shared: bool = False) -> Iterator[Path]:
    """Create a temporary directory for a server; with `shared`, other users may enter it."""
    home = tempfile.gettempdir()
    if POSIX and (shared or len(os.fsencode(home)) > MAX_FOLDER_LENGTH):
        home = "/tmp"  # noqa: S108 - mkdtemp() makes it safe
    run = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    try:
        run.chmod(0o711 if shared else 0o700)
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
