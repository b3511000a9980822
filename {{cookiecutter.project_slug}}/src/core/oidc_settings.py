"""Checks of the settings of the OpenID Connect issuer."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from src.domain.principal import Role, Scope

if TYPE_CHECKING:
    from src.core.config import Settings


def check_issuer(text: str) -> str:
    """Return the URL as it is, because tokens must have exactly this text. Raises ValueError."""
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.username or parts.query or parts.fragment or not text.isprintable():
        raise ValueError("must be a URL like https://login.example.com/realms/main")
    if "/.well-known/" in text:
        raise ValueError("must be the issuer without /.well-known/openid-configuration")
    return text


def parse_scopes_map(value: object) -> object:
    """Parse a JSON object of texts. Raises ValueError for other values, and for unknown scopes."""
    try:
        names = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        names = None
    if not isinstance(names, dict) or not all(isinstance(each, str) for each in names.values()):
        raise ValueError('must be a JSON object of texts like {"admins": "admin"}')
    given = {name for each in names.values() for name in each.split()}
    if unknown := sorted(given.difference(Scope, Role)):
        raise ValueError(f"'{unknown[0]}' is neither a scope nor a role of this service")
    return names


def production_errors(settings: "Settings") -> Iterator[str]:
    if settings.OIDC_ISSUER is None:
        yield "OIDC_ISSUER must be set"
    elif urlsplit(settings.OIDC_ISSUER).scheme != "https":
        yield "OIDC_ISSUER must be an https:// URL"
    if not settings.OIDC_AUDIENCE:
        yield "OIDC_AUDIENCE must be set"
