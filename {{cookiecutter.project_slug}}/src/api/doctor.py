"""Checks of the ports of the API, for `python cli.py doctor`."""

import json

from src.core.config import Settings
from src.doctor import CheckError, describe_port


async def check_api_port(settings: Settings) -> str:
    prefix = f"{settings.API_PREFIX}/v1"
    if "app-info" in settings.public_pages:
        # The name, because another service may respond to the same path.
        name = json.dumps(settings.PROJECT_NAME, ensure_ascii=False)
        return await describe_port(settings, "PORT", f"{prefix}/app-info", name)
    return await describe_port(settings, "PORT", f"{prefix}/health/live")


async def check_metrics_port(settings: Settings) -> str | None:
    if settings.METRICS_PORT is None:
        return None
    if settings.METRICS_PORT == settings.PORT != 0:
        raise CheckError("METRICS_PORT and PORT are equal", "Choose two ports.")
    return await describe_port(settings, "METRICS_PORT", "/metrics")


CHECKS = {"port": check_api_port, "metrics port": check_metrics_port}
