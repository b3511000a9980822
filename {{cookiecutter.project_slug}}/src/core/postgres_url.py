"""Parsing of PostgreSQL URLs in the format of hosting providers."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
_OPTIONS = {"host", "port", "ssl", "target_session_attrs", "prepared_statement_cache_size"}


def parse(text: str) -> URL:
    """Convert a URL such as `postgres://…?sslmode=require` for asyncpg.

    Raises ValueError. The message does not contain the URL, which may have a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("must be a URL like postgresql://user:password@host:5432/app") from None
    if url.get_backend_name() not in {"postgres", "postgresql"}:
        raise ValueError("must be a PostgreSQL URL: postgresql://...")
    query = dict(url.query)
    if "sslmode" in query:  # libpq's name for asyncpg's `ssl`
        query["ssl"] = query.pop("sslmode")
    query.pop("channel_binding", None)  # asyncpg does not support it
    if unknown := query.keys() - _OPTIONS:
        raise ValueError(f"has unsupported options: {', '.join(sorted(unknown))}")
    if query.get("ssl", "prefer") not in _SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(sorted(_SSL_MODES))}")
    url = url.set(drivername="postgresql+asyncpg", query=query)
    try:
        url.get_dialect()().create_connect_args(url)
    except (ArgumentError, TypeError, ValueError):
        raise ValueError("has a malformed option") from None
    return url
