"""PostgreSQL, Valkey and RabbitMQ servers that variants share, started by the service's own code."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.project import REPOSITORY, SERVICE
from tests.subprocesses import UNTOUCHED

# Each prints its address when it accepts connections, and runs until its input ends.
PROGRAMS = {
    "postgres": "from dev.postgres import embedded_postgres as run",
    "valkey": "from dev.valkey import embedded_valkey as run",
    "rabbitmq": "from dev.rabbitmq import embedded_rabbitmq as run",
}
SERVE = "\nimport sys\nwith run() as url:\n    print(url, flush=True)\n    sys.stdin.read()"
STOP_LIMIT = 60  # seconds


@contextmanager
def serving(name: str) -> Iterator[str]:
    """Run a server until the block ends; yield its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAMS[name] + SERVE],
        cwd=REPOSITORY / SERVICE,
        env=os.environ | UNTOUCHED,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, f"{name} did not start"
        yield url
    finally:
        process.communicate(timeout=STOP_LIMIT)
