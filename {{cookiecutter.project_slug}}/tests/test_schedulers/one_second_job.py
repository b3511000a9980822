"""A scheduler process with a one-second job.

Each run appends its tick and the process id to the file in `argv`. `TEST_LEASE_SECONDS` sets the
length of the lease.
"""

import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from src.core.config import get_settings
from src.core.logging import configure_logging
from src.schedulers.context import job_tick
from src.schedulers.engine import leadership, process


async def note(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([str(job_tick()), os.getpid()]) + "\n")


def setup(apscheduler: AsyncIOScheduler, path: Path) -> None:
    apscheduler.add_job(note, args=[path], trigger="interval", seconds=1, id="note")


if __name__ == "__main__":
    configure_logging(get_settings())
    if seconds := os.environ.get("TEST_LEASE_SECONDS"):
        leadership.LEASE_SECONDS = float(seconds)
    setup_here = partial(setup, path=Path(sys.argv[1]))
    asyncio.run(process.run(get_settings(), drain=2, setup=setup_here))
