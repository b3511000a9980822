"""The URL of PostgreSQL, as hosting providers write it."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
_OPTIONS = {"host", "port", "ssl", "target_session_attrs", "prepared_statement_cache_size"}


def parse(text: str) -> URL:
    """Parse a URL, `postgres://` included, for asyncpg.

    Raises ValueError, without the URL in its message: it may hold a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("not a URL like postgresql://user:password@host:5432/app") from None
    if url.get_backend_name() not in {"postgres", "postgresql"}:
        raise ValueError("only PostgreSQL is supported")
    query = dict(url.query)
    if "sslmode" in query:  # libpq's name, which providers write, for asyncpg's `ssl`
        query["ssl"] = query.pop("sslmode")
    query.pop("channel_binding", None)  # which asyncpg does not have
    if unknown := query.keys() - _OPTIONS:
        raise ValueError(f"not supported here: {', '.join(sorted(unknown))}")
    if query.get("ssl", "prefer") not in _SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(sorted(_SSL_MODES))}")
    url = url.set(drivername="postgresql+asyncpg", query=query)
    try:
        url.get_dialect()().create_connect_args(url)
    except (ArgumentError, TypeError, ValueError):
        raise ValueError("one of its options is malformed") from None
    return url
