"""What `python cli.py worker` runs: Dramatiq's own command line, with what we know.

It is not in `src.tasks`, which makes the broker: this process only starts others, that work. What
they would inherit of a broker made here, a thread among it, cannot be used in them.
"""

import os
import signal
import socket
from collections.abc import Sequence

from dramatiq import cli
from watchfiles import PythonFilter, run_process

from src.core.config import ROOT, Settings


def check_health_port(settings: Settings) -> None:
    """Say now that the port is taken, rather than work without probes. Raises SystemExit."""
    port = settings.DRAMATIQ_HEALTH_PORT
    try:
        if port is not None:
            socket.create_server((settings.HOST, port)).close()
    except OSError as error:
        raise SystemExit(f"Port {port} of {settings.HOST} cannot be had: {error}") from None


def run(*, processes: int, threads: int, queues: Sequence[str], shutdown_seconds: int) -> int:
    """Work until SIGTERM or Ctrl-C, and then for `shutdown_seconds` at most; return the status."""
    arguments = [
        *("src.tasks.jobs", "--skip-logging"),
        *("--processes", str(processes), "--threads", str(threads)),
        *("--worker-shutdown-timeout", str(shutdown_seconds * 1000)),
    ]
    if queues:
        arguments += ["--queues", *queues]
    _stop_on_hangup()
    status: int = cli.main(cli.make_argument_parser().parse_args(arguments))
    return status


def _stop_on_hangup() -> None:
    """Take a closed terminal for SIGTERM; Dramatiq would start itself anew, and not find itself."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None:
        cli.HANDLED_SIGNALS.discard(hangup)
        signal.signal(hangup, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def run_with_reload(
    *, processes: int, threads: int, queues: Sequence[str], shutdown_seconds: int
) -> int:
    """As `run`, and begin anew when code changes."""
    run_process(
        ROOT / "src",
        target=run,
        kwargs={
            "processes": processes,
            "threads": threads,
            "queues": queues,
            "shutdown_seconds": shutdown_seconds,
        },
        watch_filter=PythonFilter(),
        sigint_timeout=shutdown_seconds,
    )
    return 0
