"""A real RabbitMQ for development and tests, from the installation that the machine has.

There is no wheel of it. As installed, it starts a daemon, `epmd`, that outlives it, and tells by
asking that one whether its data are in use: here a lock does that, and no `epmd` is started.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from dev.guard import ServerError, guarded
from dev.unprivileged import temporary_home

START_LIMIT = 60.0  # seconds; most of it is spent on loading code
STOP_LIMIT = 10.0
RETRY_LIMIT = 15.0  # granted to a server that is still leaving the same data, or for a free port
PROBE_LIMIT = 1.0
POLL = 0.05
IN_USE = 75  # EX_TEMPFAIL of <sysexits.h>
ERROR = re.compile(r"\[error\] \S+ +(?!BOOT FAILED)(.*\w.*)")
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
HOST = "127.0.0.1"
NAME = "rabbitmq-server"
FOLDERS = (  # below the root
    "usr/lib/rabbitmq/bin",
    "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/homebrew/sbin",
    "usr/local/sbin",
    "home/linuxbrew/.linuxbrew/sbin",
)

# The data are bound to the name, which need not be unique: nobody else gets to know it.
NODE = "rabbit@localhost"
# RabbitMQ leaves `epmd` alone where Erlang has the name from the start, and a node that does not
# listen for others opens no port for them. RabbitMQ asks which one it is, and wants a number.
NO_DISTRIBUTION = f"-sname {NODE} -dist_listen false -erl_epmd_port 1"
SMALL = "+S 2:2"

# The lock is kept by whatever is left of the server, and so until it has left the data.
LOCK_AND_RUN = f"""
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.set_inheritable(lock, True)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit({IN_USE})
os.execv(sys.argv[2], sys.argv[2:])
"""

# A developer's disk is often nearly full: publishers shall not be blocked without a word.
CONFIGURATION = """
listeners.tcp.1 = {host}:{port}
disk_free_limit.absolute = 1MB
"""
# How we know it from another server that was faster to take the port.
ADVANCED_CONFIGURATION = Template('[{rabbit, [{server_properties, [{run, "$run"}]}]}].\n')


class RabbitMQError(ServerError):
    """RabbitMQ cannot be started; the message is one sentence for the developer."""


@contextmanager
def embedded_rabbitmq(data: Path | None = None, *, remove: Sequence[Path] = ()) -> Iterator[str]:
    """Run RabbitMQ until the block, or this process, ends; yield its URL.

    With `data` the messages are kept there for the next time. Without, they are thrown away.
    `remove` names files to delete once it has stopped, however this process ended.
    The server listens on a free port of 127.0.0.1 only.
    """
    script = _find_script()
    run = Path(tempfile.mkdtemp(prefix="rabbitmq-", dir=temporary_home(None)))
    try:
        server = _Server(script, run, data.absolute() if data else run / "data", keep=bool(data))
        with server.running(remove) as port:
            yield f"amqp://guest:guest@{HOST}:{port}"
    finally:
        shutil.rmtree(run, ignore_errors=True)


@dataclass(frozen=True)
class _Server:
    """How a server is run; `run` holds its settings, cookie and log, and goes with it."""

    script: Path
    run: Path
    data: Path
    keep: bool

    @property
    def log(self) -> Path:
        return self.run / "log"

    @contextmanager
    def running(self, remove: Sequence[Path]) -> Iterator[int]:
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RabbitMQError(_no_server(str(error))) from error
        with ExitStack() as stack:
            deadline = time.monotonic() + RETRY_LIMIT
            port = _free_port()
            while (status := self._start(stack, port, remove)) is not None:
                self._refuse_unless_passing(status, deadline)
                port = _free_port()
            yield port

    def _start(self, stack: ExitStack, port: int, remove: Sequence[Path]) -> int | None:
        """Start the server and wait until it answers, or ends; return its status if it does."""
        self._configure(port)
        server = stack.enter_context(
            guarded(
                [sys.executable, "-I", "-S", "-c", LOCK_AND_RUN, self.data / "lock", self.script],
                # What is thrown away need not be stopped in order, which takes a second.
                stop_signal=signal.SIGTERM if self.keep else signal.SIGKILL,
                limit=STOP_LIMIT,
                remove=[*remove, self.run],
                cwd=self.run,
                env=self._environment(),
                output=stack.enter_context(self.log.open("wb")),
            )
        )
        return self._wait_until_ready(server, port)

    def _wait_until_ready(self, server: subprocess.Popen[bytes], port: int) -> int | None:
        deadline = time.monotonic() + START_LIMIT
        while not self._answers(port):
            if (status := server.poll()) is not None:
                return status
            if time.monotonic() > deadline:
                message = f"it was not ready after {START_LIMIT:.0f} s: {self._last_words()}"
                raise RabbitMQError(_no_server(message))
            time.sleep(POLL)
        return None

    def _answers(self, port: int) -> bool:
        try:
            with socket.create_connection((HOST, port), timeout=PROBE_LIMIT) as probe:
                probe.sendall(PROTOCOL_HEADER)
                return self.run.name.encode() in probe.recv(4096)
        except OSError:
            return False

    def _configure(self, port: int) -> None:
        texts = {
            "rabbitmq.conf": CONFIGURATION.format(host=HOST, port=port),
            "advanced.config": ADVANCED_CONFIGURATION.substitute(run=self.run.name),
            "enabled_plugins": "[].\n",
        }
        for name, text in texts.items():
            (self.run / name).write_text(text, encoding="utf-8")

    def _environment(self) -> dict[str, str]:
        """Ours, less what would steer RabbitMQ and Erlang; nothing of a server in /etc."""
        others = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return kept | {
            "HOME": str(self.run),  # for the cookie
            # Then the script becomes the server, and does not stand between it and its guard.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_CRASH_DUMP_SECONDS": "0",
            # Each minute RabbitMQ starts another Erlang, to have an `epmd` started.
            "ERL_FLAGS": "-start_epmd false",
            "ERL_EPMD_PORT": "1",
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{NO_DISTRIBUTION} {SMALL}",
            "RABBITMQ_MNESIA_BASE": str(self.data),
            "RABBITMQ_LOG_BASE": str(self.run),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self.run / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.run / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.run / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.run / "enabled_plugins"),
        }

    def _refuse_unless_passing(self, status: int, deadline: float) -> None:
        """Say why the server ended, unless the reason may be gone at the next try."""
        words = self._last_words()
        passing = status == IN_USE or "eaddrinuse" in self.log.read_text(errors="replace")
        if passing and time.monotonic() < deadline:
            time.sleep(POLL)
        elif status == IN_USE:
            message = f"The messages in {self.data} are already in use by another RabbitMQ."
            raise RabbitMQError(message)
        else:
            raise RabbitMQError(_no_server(words))

    def _last_words(self) -> str:
        output = self.log.read_text(errors="replace").strip()
        # The first errors tell: what follows are reports of Erlang on how all else ended, too.
        words = ERROR.findall(output)[:3] or output.splitlines()[-3:]
        return " / ".join(words) or "it did not say why"


def _find_script() -> Path:
    """Find the script itself: what is on the PATH may be one that changes to another user."""
    on_path = shutil.which(NAME)
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += [found for folder in FOLDERS for found in Path("/").glob(folder)]
    for folder in folders:
        if (folder / "rabbitmq-defaults").is_file():  # the script reads it from beside itself
            return folder / NAME
    advice = "`apt-get install rabbitmq-server` or `brew install rabbitmq` brings it"
    raise RabbitMQError(_no_server(f"{NAME} is not installed: {advice}"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _no_server(reason: str) -> str:
    return (
        f"RabbitMQ cannot be started here ({reason.rstrip('.')}); set RABBITMQ_URL to a server"
        " of your own."
    )
