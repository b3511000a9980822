"""A real RabbitMQ for development and tests, from the installation that the machine has.

There is no wheel of it. As installed, it starts a daemon, `epmd`, that outlives it, and tells by
asking that one whether its data are in use: here a lock does that, and no `epmd` is started.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dev.server import Kind, ServerError, free_port, locked, run_folder
from dev.supervisor import supervised

NAME = "rabbitmq-server"
RABBITMQ = Kind(
    name="RabbitMQ",
    instead="RABBITMQ_URL to a server of your own",
    ready="Server startup complete",
    # The first errors tell: what follows are reports of Erlang on how all else ended, too.
    errors=r"\[error\] \S+ +(?!BOOT FAILED)(.*\w.*)",
)
FOLDERS = (  # below the root
    "usr/lib/rabbitmq/bin",
    "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/homebrew/sbin",
    "usr/local/sbin",
    "home/linuxbrew/.linuxbrew/sbin",
)

# The data are bound to the name, which need not be unique: no other node gets to know it.
NODE = "rabbit@localhost"
# RabbitMQ needs no `epmd` where Erlang has the name from the start, and a node that does not
# listen for others opens no port for them. RabbitMQ asks which one it is, and wants a number.
NO_DISTRIBUTION = f"-sname {NODE} -dist_listen false -erl_epmd_port 1"
SMALL = "+S 2:2"

# A developer's disk is often nearly full: publishers are not to be blocked without a word.
CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
"""


@contextmanager
def embedded_rabbitmq(data: Path | None = None, *, remove: Sequence[Path] = ()) -> Iterator[str]:
    """Run RabbitMQ until the block, or this process, ends; yield its URL.

    With `data` the messages are kept there for the next time. Without, they are thrown away.
    `remove` names files to delete once it has stopped, however this process ended.
    The server listens on a free port of 127.0.0.1 only.
    """
    script = _find_script()
    with run_folder("rabbitmq-") as run, ExitStack() as stack:
        kept = data.absolute() if data else run / "data"
        lock = stack.enter_context(locked(kept))
        while True:
            port = free_port()
            _configure(run, port)
            server = supervised(
                [script],
                # What is thrown away need not be stopped in order, which takes a second.
                stop_signal=signal.SIGTERM if data else signal.SIGKILL,
                remove=[*remove, run],
                lock=lock,
                cwd=run,
                env=_environment(run, kept),
                output=stack.enter_context((run / "log").open("wb")),
            )
            try:
                RABBITMQ.wait_until_ready(stack.enter_context(server), run / "log")
                break
            except ServerError:
                # Another process may have been faster to take the port.
                if "eaddrinuse" not in (run / "log").read_text(errors="replace"):
                    raise
        yield f"amqp://guest:guest@127.0.0.1:{port}"


def _find_script() -> Path:
    """Find the script itself: what is on the PATH may be one that changes to another user."""
    on_path = shutil.which(NAME)
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += [found for folder in FOLDERS for found in Path("/").glob(folder)]
    for folder in folders:
        if (folder / "rabbitmq-defaults").is_file():  # the script reads it from beside itself
            return folder / NAME
    advice = "`apt-get install rabbitmq-server` or `brew install rabbitmq` brings it"
    raise RABBITMQ.error(f"{NAME} is not installed: {advice}")


def _configure(run: Path, port: int) -> None:
    (run / "rabbitmq.conf").write_text(CONFIGURATION.format(port=port), encoding="utf-8")
    (run / "enabled_plugins").write_text("[].\n", encoding="utf-8")


def _environment(run: Path, data: Path) -> dict[str, str]:
    """Ours, less what would steer RabbitMQ and Erlang; nothing of a server in /etc."""
    others = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {
        "HOME": str(run),  # for the cookie
        # Then the script becomes the server, and does not stand between it and its supervisor.
        "RUNNING_UNDER_SYSTEMD": "true",
        "ERL_CRASH_DUMP_SECONDS": "0",
        # Each minute RabbitMQ starts another Erlang, to have an `epmd` started.
        "ERL_FLAGS": "-start_epmd false",
        "ERL_EPMD_PORT": "1",
        "RABBITMQ_NODENAME": NODE,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{NO_DISTRIBUTION} {SMALL}",
        "RABBITMQ_MNESIA_BASE": str(data),
        "RABBITMQ_LOG_BASE": str(run),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_CONFIG_FILE": str(run / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(run / "none"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(run / "none.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(run / "enabled_plugins"),
    }
