"""Ports on which processes listen, except that of the API.

This module must not import prometheus_client, which reads PROMETHEUS_MULTIPROC_DIR at its import.
"""

import socket

from src.core.config import Settings


def check_port(settings: Settings, name: str) -> None:
    """Raise SystemExit if the port of this setting is not free, before any process starts."""
    port = getattr(settings, name)
    try:
        if port is not None:
            listen(settings.HOST, port).close()
    except OSError as error:
        address = f"{settings.HOST}:{port}"
        raise SystemExit(f"{name}: cannot listen on {address}: {error}") from None


def check_metrics_port(settings: Settings) -> None:
    """Raise SystemExit if the API and its metrics have the same port."""
    if settings.METRICS_PORT and settings.METRICS_PORT == settings.PORT:
        raise SystemExit(f"METRICS_PORT and PORT are both {settings.PORT}: choose two ports.")


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, reuse_port=reuse_port)
