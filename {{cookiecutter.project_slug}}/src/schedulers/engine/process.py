"""The process of `python cli.py scheduler`."""

import asyncio
import signal

import structlog

from src.core.config import Settings
from src.core.events import open_resources
from src.core.metrics_server import open_metrics_server
from src.schedulers.jobs import setup_jobs
from src.schedulers.scheduler import Setup, open_scheduler

log = structlog.get_logger(__name__)


async def run(settings: Settings, *, drain: float, setup: Setup = setup_jobs) -> None:
    """Run the scheduler until SIGTERM or Ctrl-C."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows does not have `loop.add_signal_handler`.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopping.set))
    async with (
        open_metrics_server(settings),
        open_resources(settings) as resources,
        open_scheduler(settings, resources["database"], setup=setup, drain=drain),
    ):
        log.info("scheduler_started", env=settings.ENV, version=settings.VERSION)
        await stopping.wait()
    log.info("scheduler_stopped")
