"""Probes for an orchestrator, and what this service is."""

from fastapi import APIRouter, Request, Response, status

from src.api.deps import AppSettings
from src.schemas.health import AppInfo, Liveness, Readiness
from src.services.health import ping_database, run_checks

router = APIRouter()


@router.get("/health/live", tags=["health"])
async def live() -> Liveness:
    """Liveness: restart the process if this fails."""
    return Liveness()


@router.get(
    "/health/ready",
    tags=["health"],
    responses={503: {"model": Readiness, "description": "A dependency is unavailable."}},
)
async def ready(request: Request, response: Response) -> Readiness:
    """Readiness: send no requests while a dependency is unavailable."""
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
