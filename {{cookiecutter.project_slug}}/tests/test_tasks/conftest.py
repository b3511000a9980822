"""Fixtures on the brokers that the service may use; a test of tasks runs on each of them."""

import importlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
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
from tests.proxy import Proxy
from tests.proxy import Relay as Wire
from tests.test_tasks.actors import declare
from tests.test_tasks.workers import Logs, WorkerProcess, settings_for, text_of


@dataclass(frozen=True)
class Server:
    module: ModuleType
    url: str

    def variables(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.module.variables(self.url, name)
        return found

    def via(self, port: int) -> "Server":
        """Return the same server, at another port of 127.0.0.1."""
        return replace(self, url=self.module.via(self.url, port))


@contextmanager
def opened(settings: Settings, queue: str) -> Iterator[TaskBroker]:
    broker = create_broker(settings)
    declare(broker, queue)
    yield broker
    broker.close()


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
    """The environment of a process that works on the queue."""
    return {
        **server.variables(queue),
        "DATABASE_URL": text_of(committing_url),
        # % if cookiecutter.cache_backend != "none"
        "CACHE_BACKEND_TYPE": "memory",
        # % endif
        "TEST_QUEUE": queue,
    }


@pytest.fixture
def queue_settings(server: Server, queue: str, committing_url: URL) -> Settings:
    return settings_for(committing_url, server.variables(queue))


@pytest.fixture
def broker(
    queue_settings: Settings, queue: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TaskBroker]:
    """A broker with the deeds on the test's queue, and nothing on any other."""
    with opened(queue_settings, queue) as broker:
        monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
        yield broker


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.logs: Logs = []

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, dict):  # else it is a library's
            self.logs.append(record.msg)


@pytest.fixture
def logs(queue_settings: Settings) -> Iterator[Logs]:
    """What the service logs; structlog's own way misses loggers that were used before."""
    configure_logging(queue_settings)
    collector, root = _Collector(), logging.getLogger()
    level, root.handlers = root.level, [collector]
    root.setLevel(logging.INFO)
    yield collector.logs
    root.handlers = []
    root.setLevel(level)


@pytest.fixture
async def line(committing_url: URL) -> AsyncGenerator[Proxy]:
    """A way to PostgreSQL that can fail."""
    line = Proxy(committing_url)
    await line.start()
    yield line
    await line.stop()


@pytest.fixture
def remote_settings(server: Server, queue: str, line: Proxy) -> Settings:
    return settings_for(line.url, server.variables(queue))


@pytest.fixture
def remote(remote_settings: Settings, queue: str) -> Iterator[TaskBroker]:
    """As `broker`, for a worker whose database is at the other end of the line."""
    with opened(remote_settings, queue) as remote:
        yield remote


@pytest.fixture
async def wire(server: Server) -> AsyncGenerator[Wire]:
    """A way to the broker that can fail."""
    wire = Wire(partial(server.module.connect, server.url))
    await wire.start()
    yield wire
    await wire.stop()


@pytest.fixture
def distant(server: Server, queue: str, committing_url: URL, wire: Wire) -> Iterator[TaskBroker]:
    """As `broker`, at the other end of the wire."""
    with opened(
        settings_for(committing_url, server.via(wire.port).variables(queue)), queue
    ) as distant:
        yield distant


@pytest.fixture
def nobody_there(server: Server, queue: str, committing_url: URL) -> Iterator[TaskBroker]:
    with opened(settings_for(committing_url, server.via(1).variables(queue)), queue) as broker:
        yield broker


@pytest.fixture
def successor(queue_settings: Settings, queue: str) -> Iterator[TaskBroker]:
    """For a second worker in this process, once the first has stopped."""
    with opened(queue_settings, queue) as broker:
        yield broker


@pytest.fixture
async def relay(queue_settings: Settings, broker: TaskBroker) -> AsyncGenerator[Relay]:
    async with open_relay(queue_settings, broker) as relay:
        yield relay


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(variables: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start worker processes that know the deeds; what is left of them at the end is killed."""
    started: list[WorkerProcess] = []

    def start(*, threads: int = 2, patience: float = 20.0, **further: str) -> WorkerProcess:
        arguments = [
            *("-m", "dramatiq", "src.tasks.jobs", "tests.test_tasks.worker_entrypoint"),
            *("--skip-logging", "--processes", "1", "--threads", str(threads)),
            *("--worker-shutdown-timeout", str(int(patience * 1000))),
        ]
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(WorkerProcess(arguments, variables | further, log))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def production(env: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Settings that are safe but for what the test adds."""
    env.setenv("ENV", "production")
    env.setenv("API_KEYS", "a-key-of-sixteen-characters")
    env.setenv("POSTGRES_PASSWORD", "correct horse battery staple")
    return env
