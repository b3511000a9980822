"""`/metrics` for Prometheus, and the server of a separate port for it."""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from src.core.config import Settings
from src.core.ports import listen
from src.core.process_metrics import SHARED_FOLDER, register_processes

_MAX_CONNECTIONS = 20


async def metrics(_request: Request) -> Response:
    """Return the metrics; of all processes if `PROMETHEUS_MULTIPROC_DIR` is set."""
    registry = REGISTRY
    if SHARED_FOLDER in os.environ:
        registry = CollectorRegistry()
        register_processes(registry)
    return render(registry)


def render(registry: CollectorRegistry) -> Response:
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@asynccontextmanager
async def open_metrics_server(settings: Settings) -> AsyncGenerator[None]:
    """Serve `/metrics` on `METRICS_PORT`, if it is set.

    The processes of `--workers` share the port: each of them knows the metrics of all.
    """
    if settings.METRICS_PORT is None:
        yield
        return
    is_shared = SHARED_FOLDER in os.environ
    listener = listen(settings.HOST, settings.METRICS_PORT, reuse_port=is_shared)
    config = uvicorn.Config(
        Starlette(routes=[Route("/metrics", metrics)]),
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process."""
        yield
