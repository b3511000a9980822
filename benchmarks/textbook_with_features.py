"""The textbook with what each service has, added in the usual way: one middleware per feature.

It has request IDs, metrics, security headers, and an access log with structlog.
"""

import os
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog
from fastapi import Request, Response
from prometheus_client import Counter, Histogram
from textbook import app

REQUESTS = Counter("requests_total", "Requests.", ["method", "route", "status"])
DURATION = Histogram("request_seconds", "Duration of requests.", ["method", "route"])
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'",
}
HAS_ACCESS_LOG = bool(os.environ["ACCESS_LOG"])
Next = Callable[[Request], Awaitable[Response]]
log = structlog.get_logger()


@app.middleware("http")
async def add_security_headers(request: Request, call_next: Next) -> Response:
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response


@app.middleware("http")
async def measure(request: Request, call_next: Next) -> Response:
    started = time.perf_counter()
    response = await call_next(request)
    route = request.scope["route"].path
    REQUESTS.labels(request.method, route, response.status_code).inc()
    DURATION.labels(request.method, route).observe(time.perf_counter() - started)
    return response


@app.middleware("http")
async def write_access_log(request: Request, call_next: Next) -> Response:
    started = time.perf_counter()
    response = await call_next(request)
    if HAS_ACCESS_LOG:
        log.info(
            "request_completed",
            method=request.method,
            path=request.url.path,
            status=response.status_code,
            duration_ms=round((time.perf_counter() - started) * 1000, 1),
        )
    return response


@app.middleware("http")
async def add_request_id(request: Request, call_next: Next) -> Response:
    request_id = request.headers.get("X-Request-ID") or uuid4().hex
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        response = await call_next(request)
    response.headers["X-Request-ID"] = request_id
    return response
