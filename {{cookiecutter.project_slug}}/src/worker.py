"""What `python cli.py worker` runs: Dramatiq's own command line, with what we know.

It is not in `src.tasks`, which makes the broker: this process only starts others, that work. What
they would inherit of a broker made here, a thread among it, cannot be used in them.
"""

from collections.abc import Sequence

from dramatiq import cli
from watchfiles import PythonFilter, run_process

from src.core.config import ROOT


def run(*, processes: int, threads: int, queues: Sequence[str], shutdown_seconds: int) -> int:
    """Work until SIGTERM or Ctrl-C, and then for `shutdown_seconds` at most; return the status."""
    arguments = [
        *("src.tasks.jobs", "--skip-logging"),
        *("--processes", str(processes), "--threads", str(threads)),
        *("--worker-shutdown-timeout", str(shutdown_seconds * 1000)),
    ]
    if queues:
        arguments += ["--queues", *queues]
    status: int = cli.main(cli.make_argument_parser().parse_args(arguments))
    return status


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
