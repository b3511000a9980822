"""Prometheus metrics: the number of HTTP requests, and their duration.

The label `route` is the route's template (`/api/v1/notes/{note_id}`). With the path as a label,
clients could create an unlimited number of time series.
"""

import os
from time import perf_counter

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Without this, every series has a second one with its creation time.
disable_created_metrics()
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS = Counter("http_requests_total", "Completed HTTP requests.", ["method", "route", "status"])
DURATION = Histogram(
    "http_request_duration_seconds", "Duration of HTTP requests in seconds.", ["method", "route"]
)


class MetricsMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = perf_counter()
        try:
            await self.app(scope, receive, watch)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            route = route_template(scope)
            REQUESTS.labels(method, route, status).inc()
            DURATION.labels(method, route).observe(perf_counter() - started)


def route_template(scope: Scope) -> str:
    """Return the template of the matched route, including the prefixes of routers.

    For a route of an included router, `scope["route"]` lacks these prefixes.
    """
    context = scope.get("fastapi", {}).get("effective_route_context")
    route = context or scope.get("route")
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return str(template or "unmatched")


def metrics() -> Response:
    """Return the metrics; of all processes if `PROMETHEUS_MULTIPROC_DIR` is set."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
