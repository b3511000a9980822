"""Fixtures that run each test on every broker that the service can use."""

import importlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import get_args
from uuid import uuid4

import dramatiq.broker
import pytest
from sqlalchemy import URL

from src.core.broker_type import BrokerType
from src.core.config import Settings
from src.core.logging import configure_logging
from src.tasks.broker import create_broker
from src.tasks.engine.brokers.base import TaskBroker
from src.tasks.engine.relay import Relay, open_relay
from tests import proxy
from tests.fixtures.commands import Process
from tests.test_tasks.actors import declare
from tests.test_tasks.workers import Logs, settings_for, variables_for


@dataclass(frozen=True)
class Server:
    module: ModuleType
    url: str

    def variables(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.module.variables(self.url, name)
        return found

    def via(self, port: int) -> "Server":
        """Return the same server at another port of 127.0.0.1."""
        return replace(self, url=self.module.via(self.url, port))


@pytest.fixture(scope="session", params=get_args(BrokerType))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    module = importlib.import_module(f"tests.test_tasks.servers.{request.param}")
    with module.serve() as url:
        yield Server(module, url)


@pytest.fixture
def queue() -> str:
    """A queue that no other test uses."""
    return f"test-{uuid4().hex}"


@pytest.fixture
def variables(server: Server, queue: str, committing_url: URL) -> dict[str, str]:
    """The environment variables of a worker of the queue."""
    return {
        **variables_for(committing_url),
        **server.variables(queue),
        "TEST_QUEUE": queue,
    }


@pytest.fixture
def queue_settings(server: Server, queue: str, committing_url: URL) -> Settings:
    return settings_for(committing_url, server.variables(queue))


OpenBroker = Callable[..., TaskBroker]


@pytest.fixture
def open_broker(server: Server, queue: str, committing_url: URL) -> Iterator[OpenBroker]:
    """Create brokers that have only the test's queue, with the actors."""
    opened: list[TaskBroker] = []

    def open_broker(*, url: URL = committing_url, port: int | None = None) -> TaskBroker:
        """Optionally use another database URL, or another port of the broker's server."""
        variables = (server.via(port) if port else server).variables(queue)
        broker = create_broker(settings_for(url, variables))
        declare(broker, queue)
        opened.append(broker)
        return broker

    yield open_broker
    for broker in opened:
        broker.close()


@pytest.fixture
def broker(open_broker: OpenBroker, monkeypatch: pytest.MonkeyPatch) -> TaskBroker:
    broker = open_broker()
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return broker


@pytest.fixture
async def broker_proxy(server: Server) -> AsyncGenerator[proxy.Proxy]:
    broker_proxy = proxy.Proxy(partial(server.module.connect, server.url))
    await broker_proxy.start()
    yield broker_proxy
    await broker_proxy.stop()


@pytest.fixture
async def relay(queue_settings: Settings, broker: TaskBroker) -> AsyncGenerator[Relay]:
    async with open_relay(queue_settings, broker) as relay:
        yield relay


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.logs: Logs = []

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, dict):  # others come from libraries
            self.logs.append(record.msg)


@pytest.fixture
def logs(queue_settings: Settings) -> Iterator[Logs]:
    """The log events. structlog's capture_logs misses loggers that were used before."""
    configure_logging(queue_settings)
    collector, root = _Collector(), logging.getLogger()
    level, root.handlers = root.level, [collector]
    root.setLevel(logging.INFO)
    yield collector.logs
    root.handlers = []
    root.setLevel(level)


Start = Callable[..., Process]


@pytest.fixture
def start(variables: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start worker processes with the actors. Kill the remaining ones at the end."""
    started: list[Process] = []

    def start(
        *, processes: int = 1, threads: int = 2, shutdown_seconds: float = 20.0, **extra: str
    ) -> Process:
        arguments = [
            *("-m", "dramatiq", "src.tasks.jobs", "tests.test_tasks.worker_entrypoint"),
            *("--skip-logging", "--processes", str(processes), "--threads", str(threads)),
            *("--worker-shutdown-timeout", str(int(shutdown_seconds * 1000))),
            *("--queues", variables["TEST_QUEUE"]),
        ]
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(Process(*arguments, log=log, **variables, **extra))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
