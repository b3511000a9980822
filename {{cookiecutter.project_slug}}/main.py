"""The ASGI application. Run it with `python cli.py api` or `uvicorn main:app`."""

import os
from importlib.util import find_spec
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.telemetry import TelemetryConfig
from fastapi_standalone_docs import StandaloneDocs
from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from src.api import (
    auth,
    idempotency,
    # % if cookiecutter.__oidc
    oidc,
    # % endif
    openapi,
    # % if cookiecutter.cache_backend != "none"
    response_cache,
    response_cache_middleware,
    # % endif
)
from src.api.auth_middleware import AuthenticationMiddleware
from src.api.body_limit import BodyLimitMiddleware
from src.api.middleware import RequestMiddleware
from src.api.rate_limits import RateLimitMiddleware
from src.api.routing import RouteIndex
from src.api.security_headers import SecurityHeaders
from src.api.v1.router import router as v1_router
from src.core import origins
from src.core.config import Settings, get_settings
from src.core.events import build_lifespan
from src.core.exceptions import add_exception_handlers
from src.core.logging import configure_logging
from src.core.metrics_server import metrics
from src.core.ports import check_metrics_port


def create_application(settings: Settings | None = None) -> FastAPI:
    settings = settings or get_settings()
    check_metrics_port(settings)
    configure_logging(settings)
    has_docs = "docs" in settings.public_pages
    app = openapi.ProblemOpenAPI(
        title=settings.PROJECT_NAME,
        description=settings.PROJECT_DESCRIPTION,
        version=settings.VERSION,
        debug=settings.DEBUG,
        docs_url=f"{settings.API_PREFIX}/docs",
        redoc_url=f"{settings.API_PREFIX}/redoc",
        openapi_url=f"{settings.API_PREFIX}/openapi.json" if has_docs else None,
        swagger_ui_oauth2_redirect_url=None,
        lifespan=build_lifespan(settings),
        telemetry=telemetry(),
        dependencies=[Depends(auth.authenticate)],
    )
    preparations = [
        auth.prepare_routes,
        # % if cookiecutter.cache_backend != "none"
        response_cache.check_routes,
        # % endif
    ]
    app.router.middleware_stack = RouteIndex(app.router, preparations)
    add_middleware(app, settings)
    add_exception_handlers(app)
    app.include_router(v1_router, prefix=f"{settings.API_PREFIX}/v1")
    if "metrics" in settings.public_pages:
        app.add_api_route("/metrics", auth.allow_anonymous(metrics), include_in_schema=False)
    # % if cookiecutter.__oidc
    if has_docs:
        oidc.add_login(app, settings)
    # % endif
    if has_docs:
        # Serve the assets of Swagger UI and ReDoc from this process instead of a CDN.
        StandaloneDocs(app)
    if has_docs and settings.ENV == "development":
        redirect_to_docs(app, settings.API_PREFIX)
    return app


def telemetry() -> TelemetryConfig:
    """Turn off telemetry that no one can receive: FastAPI looks for a receiver at each request."""
    # Without the SDK, FastAPI says what is missing, if it is to configure it.
    if find_spec("opentelemetry.sdk") or os.environ.get("FASTAPI_OTEL_AUTO_CONFIGURE"):
        return {}
    return {"tracing": False, "metrics": False, "logs": False}


def redirect_to_docs(app: FastAPI, prefix: str) -> None:
    """Redirect `/`, `/docs` and so on to the documentation, unless a route has this path."""
    not_found = app.router.default
    pages = {"/docs": app.docs_url, "/redoc": app.redoc_url, "/openapi.json": app.openapi_url}
    pages |= dict.fromkeys(("/", prefix, f"{prefix}/"), app.docs_url)

    async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
        root_path = scope.get("root_path", "")
        page = pages.get(scope["path"].removeprefix(root_path) or "/")
        if page and scope["type"] == "http":
            await RedirectResponse(f"{root_path}{page}")(scope, receive, send)
        else:
            await not_found(scope, receive, send)

    app.router.default = redirect


def add_middleware(app: FastAPI, settings: Settings) -> None:
    """Add the middleware. The last one added is the outermost: it sees each request first."""
    app.add_middleware(idempotency.IdempotencyMiddleware, handlers=app.exception_handlers)
    # % if cookiecutter.cache_backend != "none"
    app.add_middleware(response_cache_middleware.CacheMiddleware)
    # % endif
    app.add_middleware(AuthenticationMiddleware)
    app.add_middleware(BodyLimitMiddleware, max_body_size=settings.MAX_BODY_SIZE)
    if settings.RATE_LIMIT:
        probes = {f"{settings.API_PREFIX}/v1/health/{name}" for name in ("live", "ready")}
        exempt = {"/metrics", *probes}
        app.add_middleware(RateLimitMiddleware, rate=settings.RATE_LIMIT, exempt=exempt)
    app.add_middleware(
        RequestMiddleware,
        security_headers=SecurityHeaders(settings.HSTS_SECONDS),
        cors=cors(settings.CORS_ORIGINS) if settings.CORS_ORIGINS else None,
        debug=settings.DEBUG,
    )


def cors(allowed: list[str]) -> dict[str, Any]:
    """Return the options of `CORSMiddleware`."""
    return {
        "allow_origins": allowed,
        "allow_origin_regex": origins.pattern(allowed),
        # Browsers reject credentials in combination with "*".
        "allow_credentials": "*" not in allowed,
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        "expose_headers": [
            "ETag",
            idempotency.REPLAYED,
            "Location",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "X-Request-ID",
        ],
    }


app = create_application()
