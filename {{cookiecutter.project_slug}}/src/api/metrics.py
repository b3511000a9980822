"""Prometheus metrics and the access log: the number of HTTP requests, and their duration.

The label `route` is the route's template (`/api/v1/notes/{note_id}`). With the path as a label,
clients could create an unlimited number of time series.
"""

from time import perf_counter
from typing import Any

import structlog
from fastapi.routing import APIRoute, iter_route_contexts
from prometheus_client import Counter, Histogram, disable_created_metrics
from starlette.requests import HTTPConnection
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.auth import principal_of
from src.core.logging import ACCESS_LOGGER
from src.core.trace import principal_id

access_log = structlog.get_logger(ACCESS_LOGGER)

# Without this, every series has a second one with its creation time.
disable_created_metrics()
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS = Counter("http_requests_total", "Completed HTTP requests.", ["method", "route", "status"])
DURATION = Histogram(
    "http_request_duration_seconds", "Duration of HTTP requests in seconds.", ["method", "route"]
)


class MetricsMiddleware:
    """Count, time and log each request, at the end of its response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        app, root_path = scope["app"], scope.get("root_path", "")  # a mount replaces them
        status, is_recorded = 500, False

        def record() -> None:
            nonlocal is_recorded
            if not is_recorded:
                is_recorded = True
                seconds = perf_counter() - started
                _record(scope, _route_of(scope, app, root_path), status, seconds)

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record()  # `BackgroundTasks` run after this

        try:
            await self.app(scope, receive, watch)
        finally:
            record()


def _record(scope: Scope, route: str, status: int, seconds: float) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    REQUESTS.labels(method, route, status).inc()
    DURATION.labels(method, route).observe(seconds)
    # Starlette's `BaseHTTPMiddleware` hides the context variables of the endpoint.
    if principal_id.get() is None and (principal := principal_of(HTTPConnection(scope))):
        principal_id.set(str(principal))
    access_log.info(
        "request_completed",
        method=scope["method"],
        path=scope["path"],
        route=route,
        status=status,
        duration_ms=round(seconds * 1000, 1),
        client=(scope.get("client") or [None])[0],
    )


def _route_of(scope: Scope, app: ASGIApp, root_path: str) -> str:
    """Return the template of the route; below a mount, the path of the mount and this template."""
    if "app_root_path" not in scope:
        return route_template(scope)
    outside = {**scope, "root_path": root_path}
    mounts = (
        str(route.path)
        for route in iter_route_contexts(getattr(app, "routes", ()))
        if isinstance(route.original_route, Mount) and route.matches(outside)[0] is Match.FULL
    )
    # Other applications than FastAPI have routes without templates, such as files.
    inner = route_template(scope) if isinstance(scope.get("route"), APIRoute) else ""
    return f"{next(mounts, '')}{inner}" or "/"


def route_template(scope: Scope) -> str:
    """Return the template of the matched route, including the prefixes of routers."""
    route = matched_route(scope)
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return str(template or "unmatched")


def matched_route(scope: Scope) -> Any:
    """Return the matched route with the prefixes and dependencies of its routers, or None.

    For a route of an included router, `scope["route"]` lacks them.
    """
    route = scope.get("route")
    context = scope.get("fastapi", {}).get("effective_route_context")
    if context and (not isinstance(route, APIRoute) or context.original_route is route):
        return context
    return route
