"""Access tokens of an OpenID Connect issuer as credentials; see docs/oidc.md."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from src.core.config import Settings
from src.oidc.errors import InvalidTokenError, IssuerUnavailableError

if TYPE_CHECKING:
    from src.oidc.access_tokens import AccessTokens

__all__ = ["AccessTokens", "InvalidTokenError", "IssuerUnavailableError", "open_access_tokens"]

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_access_tokens(settings: Settings) -> AsyncGenerator["AccessTokens | None"]:
    """Yield None without `OIDC_ISSUER`, which only development and tests allow."""
    if settings.OIDC_ISSUER is None:
        log.warning("oidc_disabled", reason="OIDC_ISSUER is not set: bearer tokens are rejected")
        yield None
        return
    # Loaded if used: cryptography and an HTTP client.
    from src.oidc.access_tokens import AccessTokens  # noqa: PLC0415
    from src.oidc.issuer import open_issuer  # noqa: PLC0415

    async with open_issuer(settings.OIDC_ISSUER) as issuer:
        yield AccessTokens(settings, issuer)
