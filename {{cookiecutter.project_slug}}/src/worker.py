"""Runs Dramatiq's command line for `python cli.py worker`.

This module is not in `src.tasks`, because importing that package creates a broker. The worker
processes would inherit the broker without its threads, and it would not work.
"""

import os
import signal
from collections.abc import Sequence
from typing import Any

from dramatiq import cli
from watchfiles import PythonFilter, run_process

from src.core.config import ROOT


def run(*, processes: int, threads: int, queues: Sequence[str], shutdown_seconds: int) -> int:
    """Run workers until SIGTERM or Ctrl-C, and return the exit status.

    Running tasks then get `shutdown_seconds` to finish.
    """
    arguments = [
        *("src.tasks.jobs", "--skip-logging"),
        *("--processes", str(processes), "--threads", str(threads)),
        *("--worker-shutdown-timeout", str(shutdown_seconds * 1000)),
    ]
    if queues:
        arguments += ["--queues", *queues]
    if hasattr(signal, "SIGHUP"):
        # Stop when the terminal closes. On SIGHUP, Dramatiq would restart itself with its own
        # command, but this process runs cli.py.
        cli.HANDLED_SIGNALS.discard(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    status: int = cli.main(cli.make_argument_parser().parse_args(arguments))
    return status


def run_with_reload(**options: Any) -> int:
    """Call `run` with these options, and restart it when code in src/ changes."""
    run_process(
        ROOT / "src",
        target=run,
        kwargs=options,
        watch_filter=PythonFilter(),
        sigint_timeout=options["shutdown_seconds"],
    )
    return 0
