"""The health server of a worker: /health/live, /health/ready and /metrics."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import cast

import structlog
import uvicorn
from dramatiq import get_broker
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from src.core.config import Settings, get_settings
from src.core.metrics_server import render
from src.core.ports import listen
from src.core.process_metrics import SHARED_FOLDER, register_processes
from src.core.shutdown import end_with_parent
from src.db import Database, open_database
from src.db.session import DatabaseUnavailableError
from src.repositories.task import OutboxRepository
from src.schemas.health import Readiness
from src.services.health import ping_database, run_checks
from src.tasks.engine.actors import load_actors
from src.tasks.engine.brokers.base import BrokerUnavailableError, QueueState, TaskBroker
from src.tasks.engine.dramatiq_patches import configure_child_logging

log = structlog.get_logger(__name__)

MAX_HEARTBEAT_AGE = 30.0  # seconds, or ten missed heartbeats


def serve() -> int:
    """Serve until the worker ends. Dramatiq runs this function in a separate process."""
    settings = get_settings()
    configure_child_logging(settings)
    end_with_parent(signal.SIGTERM)
    load_actors()  # declares the queues
    app = create_app(settings, cast(TaskBroker, get_broker()))
    with listen(settings.HOST, settings.DRAMATIQ_HEALTH_PORT or 0) as listener:
        log.info("health_server_started", url=f"http://{settings.HOST}:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run([listener])
    return 0


def create_app(settings: Settings, broker: TaskBroker) -> Starlette:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[dict[str, Database]]:
        async with open_database(settings.database_url, pool_size=1) as database:
            yield {"database": database}

    async def live(_request: Request) -> Response:
        return _readiness({"worker": is_alive()})

    async def ready(request: Request) -> Response:
        checks = {
            "broker": asyncio.to_thread(broker.ping),
            "database": ping_database(request.state.database),
        }
        return _readiness(await run_checks(checks, errors=(BrokerUnavailableError,)))

    async def metrics(request: Request) -> Response:
        registry = CollectorRegistry()
        if SHARED_FOLDER in os.environ:
            register_processes(registry)
        states = await asyncio.to_thread(_queue_states, broker)
        outbox_age = await _outbox_age(request.state.database)
        registry.register(BacklogCollector(states, outbox_age))
        return render(registry)

    paths = {"/health/live": live, "/health/ready": ready, "/metrics": metrics}
    return Starlette(routes=[Route(*each) for each in paths.items()], lifespan=lifespan)


def is_alive() -> bool:
    """Return whether the event loop of every worker process has run recently."""
    if SHARED_FOLDER not in os.environ:
        return True
    beats = Path(os.environ[SHARED_FOLDER]).glob("*.heartbeat")
    return all(time.monotonic() - beat.stat().st_mtime < MAX_HEARTBEAT_AGE for beat in beats)


class BacklogCollector(Collector):
    """Metrics of the broker and the outbox. Omits those of an unavailable server."""

    def __init__(self, states: Mapping[str, QueueState], outbox_age: float | None) -> None:
        self._states = states
        self._outbox_age = outbox_age

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._family("tasks_waiting", "Due messages in the queue.", "waiting")
        yield from self._family("tasks_delayed", "Messages that are not yet due.", "delayed")
        yield from self._family("tasks_dead", "Dead letters of the queue.", "dead")
        yield from self._family(
            "tasks_oldest_message_age_seconds", "Age of the oldest message.", "oldest_seconds"
        )
        if self._outbox_age is not None:
            yield GaugeMetricFamily(
                "tasks_outbox_oldest_seconds",
                "Seconds since the oldest unsent message was due.",
                self._outbox_age,
            )

    def _family(self, name: str, text: str, attribute: str) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(name, text, labels=["queue"])
        for queue, state in self._states.items():
            if (value := getattr(state, attribute)) is not None:
                family.add_metric([queue], value)
        if family.samples:
            yield family


def _readiness(checks: Mapping[str, bool]) -> Response:
    found = Readiness.of(checks)
    status = HTTPStatus.OK if found.status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(found.model_dump_json(), status, media_type="application/json")


def _queue_states(broker: TaskBroker) -> Mapping[str, QueueState]:
    try:
        return {name: broker.queue_state(name) for name in sorted(broker.get_declared_queues())}
    except BrokerUnavailableError as error:
        log.warning("metrics_incomplete", missing="broker", cause=str(error))
        return {}


async def _outbox_age(database: Database) -> float | None:
    try:
        async with database.reads() as session:
            return await OutboxRepository(session).oldest_seconds()
    except (DatabaseUnavailableError, SQLAlchemyError) as error:
        log.warning("metrics_incomplete", missing="database", cause=str(error))
        return None
