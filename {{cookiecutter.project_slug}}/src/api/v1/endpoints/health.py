"""Liveness and readiness probes, and information about the service."""

from fastapi import APIRouter, HTTPException, Request, Response, status

from src.api.auth import allow_anonymous
from src.api.deps import AppSettings
from src.core.shutdown import is_stopping
from src.schemas.health import AppInfo, Liveness, Readiness
from src.services.health import ping_database, run_checks

router = APIRouter()


@router.get("/health/live", tags=["health"], summary="Check Liveness")
@allow_anonymous
async def live() -> Liveness:
    """Use this as the liveness probe. It needs no database or other server."""
    return Liveness()


@router.get(
    "/health/ready",
    tags=["health"],
    summary="Check Readiness",
    responses={503: {"model": Readiness, "description": "Send no requests to this process."}},
)
@allow_anonymous
async def ready(request: Request, response: Response) -> Readiness:
    """Use this as the readiness probe: it fails while the database is unavailable.

    It also fails while the process stops. The response arrives within two seconds.
    """
    if is_stopping(request.scope):
        results = {"server": False}
    else:
        results = await run_checks({"database": ping_database(request.state.database)})
    readiness = Readiness.of(results)
    # % if cookiecutter.__oidc
    if access_tokens := getattr(request.state, "oidc", None):
        # It does not fail the probe: API keys still work, and so do the keys that are known. All
        # processes use the same issuer, so there is no better one to send requests to.
        readiness.checks["oidc"] = "ok" if access_tokens.issuer.is_available else "unavailable"
    # % endif
    if readiness.status != "ok":
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return readiness


@router.get("/app-info", tags=["service"], summary="Get Service Information")
@allow_anonymous
async def app_info(settings: AppSettings) -> AppInfo:
    """Return the name, version and environment of the service."""
    if "app-info" not in settings.public_pages:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return AppInfo(
        name=settings.PROJECT_NAME,
        description=settings.PROJECT_DESCRIPTION,
        version=settings.VERSION,
        environment=settings.ENV,
    )
