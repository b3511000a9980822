"""Runs the RabbitMQ that is installed on this machine, for development and tests.

RabbitMQ normally starts the daemon `epmd`, which keeps running afterwards, and asks it if the data
are in use. Here a file lock replaces `epmd`.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dev.server import ServerError, ServerKind, free_port, locked, run_folder
from dev.supervisor import supervised

NAME = "rabbitmq-server"
RABBITMQ = ServerKind(
    name="RabbitMQ",
    alternative="Set RABBITMQ_URL to use another server.",
    ready="Server startup complete",
    # The cause is in the first errors; Erlang's crash reports follow.
    errors=r"\[error\] \S+ +(?!BOOT FAILED)(.*\w.*)",
)
FOLDERS = (  # below the root
    "usr/lib/rabbitmq/bin",
    "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/homebrew/sbin",
    "usr/local/sbin",
    "home/linuxbrew/.linuxbrew/sbin",
)

# RabbitMQ finds its data by this name. It need not be unique, since the node joins no cluster.
NODE = "rabbit@localhost"
# With its name set here, the node does not register with `epmd`, and it opens no port for other
# nodes. RabbitMQ still requires a number for the port of `epmd`.
NO_DISTRIBUTION = f"-sname {NODE} -dist_listen false -erl_epmd_port 1"
SMALL = "+S 2:2"

# RabbitMQ silently blocks publishers when the disk is nearly full, as on many laptops.
CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
"""


@contextmanager
def embedded_rabbitmq(data: Path | None = None, *, remove: Sequence[Path] = ()) -> Iterator[str]:
    """Run RabbitMQ until the block or this process ends; yield its URL.

    Messages are stored in `data`. Without `data` they are temporary. The paths in `remove` are
    deleted after the server has stopped. The server listens on a free port of 127.0.0.1.
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
                # A graceful stop takes a second, and temporary data do not need it.
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
                # Another process may have taken the port in the meantime.
                if "eaddrinuse" not in (run / "log").read_text(errors="replace"):
                    raise
        yield f"amqp://guest:guest@127.0.0.1:{port}"


def _find_script() -> Path:
    """Find the original script: the one on the PATH may be a wrapper that changes the user."""
    on_path = shutil.which(NAME)
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += [found for folder in FOLDERS for found in Path("/").glob(folder)]
    for folder in folders:
        if (folder / "rabbitmq-defaults").is_file():  # the script reads this file
            return folder / NAME
    command = "`apt-get install rabbitmq-server` or `brew install rabbitmq`"
    raise RABBITMQ.error(f"{NAME} is not installed; install it with {command}")


def _configure(run: Path, port: int) -> None:
    (run / "rabbitmq.conf").write_text(CONFIGURATION.format(port=port), encoding="utf-8")
    (run / "enabled_plugins").write_text("[].\n", encoding="utf-8")


def _environment(run: Path, data: Path) -> dict[str, str]:
    """Return an environment that ignores the variables and files of other RabbitMQ servers."""
    others = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {
        "HOME": str(run),  # for the Erlang cookie
        # With this, the script runs the server with exec instead of as a child process.
        "RUNNING_UNDER_SYSTEMD": "true",
        "ERL_CRASH_DUMP_SECONDS": "0",
        # Otherwise RabbitMQ starts an Erlang process every minute to start `epmd`.
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
