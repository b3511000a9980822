"""Probes for an orchestrator, and what runs here."""

from fastapi import APIRouter, Request, Response, status

from src.api.deps import AppSettings
from src.schemas.health import AppInfo, Liveness, Readiness
from src.services.health import ping_database, run_checks

router = APIRouter()


@router.get("/health/live", tags=["health"])
async def live() -> Liveness:
    """Tell that the process answers. Restart it if it does not."""
    return Liveness()


@router.get(
    "/health/ready",
    tags=["health"],
    responses={503: {"model": Readiness, "description": "Some part is away."}},
)
async def ready(request: Request, response: Response) -> Readiness:
    """Tell whether every part that the service needs answers. Send it no requests if not."""
    results = await run_checks({"database": ping_database(request.state.database)})
    readiness = Readiness.of(results)
    if readiness.status != "ok":
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return readiness


@router.get("/app-info", tags=["service"])
async def app_info(settings: AppSettings) -> AppInfo:
    return AppInfo(
        name=settings.PROJECT_NAME,
        description=settings.PROJECT_DESCRIPTION,
        version=settings.VERSION,
        environment=settings.ENV,
    )
