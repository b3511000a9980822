"""`python cli.py worker`: Dramatiq's own command line, with our settings.

It is not in `src.tasks`, which creates the broker when it is imported: this process only starts
others, and a broker that they inherit, with the thread of its time limit, does not work in them.
"""

import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from dramatiq import cli
from watchfiles import PythonFilter, run_process

from src.core.config import ROOT, Settings


def check_health_port(settings: Settings) -> None:
    """Refuse a port that is taken, rather than work without probes. Raises SystemExit."""
    port = settings.DRAMATIQ_HEALTH_PORT
    try:
        if port is not None:
            socket.create_server((settings.HOST, port)).close()
    except OSError as error:
        raise SystemExit(f"Cannot listen on port {port} of {settings.HOST}: {error}") from None


def run(*, processes: int, threads: int, queues: Sequence[str], shutdown_seconds: int) -> int:
    """Work until SIGTERM or Ctrl-C, and then for `shutdown_seconds` at most; return the status."""
    arguments = [
        *("src.tasks.jobs", "--skip-logging"),
        *("--processes", str(processes), "--threads", str(threads)),
        *("--worker-shutdown-timeout", str(shutdown_seconds * 1000)),
    ]
    if queues:
        arguments += ["--queues", *queues]
    if hasattr(signal, "SIGHUP"):
        # A closed terminal stops the worker: Dramatiq would start itself again, and not find itself.
        cli.HANDLED_SIGNALS.discard(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    status: int = cli.main(cli.make_argument_parser().parse_args(arguments))
    return status


def run_with_reload(**options: Any) -> int:
    """Run with the options of `run`, and restart when code changes."""
    run_process(
        ROOT / "src",
        target=run,
        kwargs=options,
        watch_filter=PythonFilter(),
        sigint_timeout=options["shutdown_seconds"],
    )
    return 0
