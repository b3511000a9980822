"""What a worker tells of itself over HTTP: /health/live, /health/ready and /metrics."""

import asyncio
import os
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

import src.tasks.jobs  # noqa: F401 - it declares the queues
from src.core.config import Settings, get_settings
from src.core.logging import configure_logging
from src.db import open_database
from src.db.session import DatabaseUnavailableError
from src.repositories.task import OutboxRepository
from src.schemas.health import Readiness
from src.tasks.broker import broker
from src.tasks.engine.brokers.base import BrokerUnavailableError, QueueState, TaskBroker
from src.tasks.engine.maintenance import HEARTBEATS
from src.tasks.engine.metrics import LAST_STARTED

log = structlog.get_logger(__name__)

LIFE_SECONDS = 30.0  # ten heartbeats
_LABELS = ["queue"]


def serve() -> int:
    """Answer until the worker ends; Dramatiq runs this in a process of its own."""
    settings = get_settings()
    configure_logging(settings)
    port = settings.DRAMATIQ_HEALTH_PORT or 0
    with ThreadingHTTPServer((settings.HOST, port), handler(settings, broker)) as server:
        log.info("worker_health", url=f"http://{settings.HOST}:{server.server_port}")
        server.serve_forever()
    return 0


def handler(settings: Settings, own_broker: TaskBroker) -> type[BaseHTTPRequestHandler]:
    waiting_since: dict[str, float] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health/live":
                self._answer_check({"worker": is_alive()})
            elif self.path == "/health/ready":
                self._answer_check(readiness(settings, own_broker))
            elif self.path == "/metrics":
                numbers = scrape(settings, own_broker, waiting_since)
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, numbers)
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer_check(self, checks: dict[str, bool]) -> None:
            found = Readiness.of(checks)
            status = HTTPStatus.OK if found.status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, "application/json", found.model_dump_json().encode())

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
            """Probes come every few seconds."""

    return Handler


def is_alive() -> bool:
    """Whether the event loop of each worker process has turned lately."""
    beats = (
        list(Path(os.environ[HEARTBEATS]).glob("*.heartbeat")) if HEARTBEATS in os.environ else []
    )
    return all(time.time() - beat.stat().st_mtime < LIFE_SECONDS for beat in beats)


def readiness(settings: Settings, own_broker: TaskBroker) -> dict[str, bool]:
    broker_is_there = True
    try:
        own_broker.ping()
    except BrokerUnavailableError as error:
        log.warning("not_ready", part="broker", cause=str(error))
        broker_is_there = False
    return {"broker": broker_is_there, "database": outbox_age(settings) is not None}


def outbox_age(settings: Settings) -> float | None:
    """Return for how long the first message of the outbox is due; None without a database."""

    async def ask() -> float:
        async with (
            open_database(settings.database_url, pool_size=1) as database,
            database.reads() as session,
        ):
            return await OutboxRepository(session).oldest_seconds()

    try:
        return asyncio.run(ask())
    except (DatabaseUnavailableError, SQLAlchemyError) as error:
        log.warning("not_ready", part="database", cause=str(error))
        return None


def scrape(settings: Settings, own_broker: TaskBroker, waiting_since: dict[str, float]) -> bytes:
    """Return all numbers; `waiting_since` remembers from one scrape to the next."""
    counted, asked = CollectorRegistry(), CollectorRegistry()
    if HEARTBEATS in os.environ:
        MultiProcessCollector(counted)
    asked.register(QueueCollector(own_broker, counted, waiting_since))
    asked.register(OutboxCollector(settings))
    return generate_latest(counted) + generate_latest(asked)


class OutboxCollector(Collector):
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[GaugeMetricFamily]:
        age = outbox_age(self._settings)
        if age is not None:
            yield GaugeMetricFamily(
                "tasks_outbox_oldest_seconds", "How long the first unsent message is due.", age
            )


class QueueCollector(Collector):
    """What is in the queues; nothing while the broker is away."""

    def __init__(
        self, own_broker: TaskBroker, counted: CollectorRegistry, waiting_since: dict[str, float]
    ) -> None:
        self._broker = own_broker
        self._counted = counted
        self._waiting_since = waiting_since

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            queues = sorted(self._broker.get_declared_queues())
            states = {name: self._broker.queue_state(name) for name in queues}
        except BrokerUnavailableError as error:
            log.warning("not_ready", part="broker", cause=str(error))
            return
        yield _family("tasks_waiting", "Messages to do, those in work included.", states, "waiting")
        yield _family("tasks_delayed", "Messages that wait for their time.", states, "delayed")
        yield _family("tasks_dead", "Dead letters.", states, "dead")
        oldest = GaugeMetricFamily(
            "tasks_oldest_message_age_seconds", "How long the first in line waits.", labels=_LABELS
        )
        for name, state in states.items():
            age = state.oldest_seconds
            oldest.add_metric([name], self._estimated_age(name, state) if age is None else age)
        yield oldest

    def _estimated_age(self, queue: str, state: QueueState) -> float:
        """Return how old the first in line is at most: it was sent after the one started last.

        Where no worker here has started one, return how old it is at least, as seen from here.
        """
        if not state.waiting:
            self._waiting_since.pop(queue, None)
            return 0.0
        since = self._waiting_since.setdefault(queue, time.time())
        sample = next(iter(LAST_STARTED.describe())).name
        sent = self._counted.get_sample_value(sample, {"queue": queue})
        return max(0.0, time.time() - (since if sent is None else sent))


def _family(
    name: str, text: str, states: dict[str, QueueState], attribute: str
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=_LABELS)
    for queue, state in states.items():
        family.add_metric([queue], getattr(state, attribute))
    return family
