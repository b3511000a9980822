"""Prometheus metrics and the access log: the number of HTTP requests, and their duration.

The label `route` is the route's template (`/api/v1/notes/{note_id}`). With the path as a label,
clients could create an unlimited number of time series.
"""

import logging
from functools import lru_cache

import structlog
from fastapi.routing import APIRoute, iter_route_contexts
from prometheus_client import Counter, Histogram, disable_created_metrics
from starlette.requests import HTTPConnection
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Scope

from src.api.auth import principal_of
from src.api.routing import route_template
from src.core.logging import ACCESS_LOGGER
from src.core.trace import principal_id

access_log = structlog.get_logger(ACCESS_LOGGER)
_access_logger = logging.getLogger(ACCESS_LOGGER)

# Without this, every series has a second one with its creation time.
disable_created_metrics()
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS = Counter("http_requests_total", "Completed HTTP requests.", ["method", "route", "status"])
DURATION = Histogram(
    "http_request_duration_seconds", "Duration of HTTP requests in seconds.", ["method", "route"]
)


@lru_cache(maxsize=1024)
def _series(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return the series with these labels. `labels()` costs more than counting."""
    return REQUESTS.labels(method, route, status), DURATION.labels(method, route)


def record(scope: Scope, status: int, seconds: float, app: ASGIApp, root_path: str) -> None:
    """Count, time and log a request. A mount has replaced `app` and `root_path` in the scope."""
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    route = _route_of(scope, app, root_path)
    requests, duration = _series(method, route, status)
    requests.inc()
    duration.observe(seconds)
    if _access_logger.isEnabledFor(logging.INFO):
        _log(scope, route, status, seconds)


def _log(scope: Scope, route: str, status: int, seconds: float) -> None:
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
