"""Parsing of PostgreSQL URLs in the format of hosting providers.

The options of a URL have the names of libpq, PostgreSQL's C library. `src/db/connection.py` passes
them to asyncpg.
"""

import re
from collections.abc import Mapping
from typing import Literal, get_args
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_Value = str | tuple[str, ...]
SSLMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
POOLER = "pgbouncer"  # the name of Prisma and Supabase
SYSTEM = "system"  # a value of sslrootcert: the certificates of the operating system
FILES = ("sslrootcert", "sslcert", "sslkey")
ASYNCPG = (  # asyncpg accepts these in its DSN
    *FILES,
    "sslmode",
    "sslnegotiation",
    "target_session_attrs",
    "application_name",
    "options",
)
# The service adds these options. PostgreSQL has the same names.
TIMEOUTS = ("lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
# Linux closes a connection if the peer does not acknowledge data or keepalive probes in time.
TCP = {
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
_NUMBERS = ("connect_timeout", "command_timeout", "prepared_statement_cache_size", *TCP)
_CHOICES = {
    "sslmode": get_args(SSLMode),
    "channel_binding": ("disable", "prefer", "require"),
    POOLER: ("true", "false"),
}
_OPTIONS = {"host", "port", *ASYNCPG, *TIMEOUTS, *_NUMBERS, *_CHOICES}
_INSTEAD = {
    "connection_limit": "set DATABASE_POOL_SIZE",
    "pool_size": "set DATABASE_POOL_SIZE",
    "schema": "write options=-c%20search_path=NAME",
    "search_path": "write options=-c%20search_path=NAME",
    "statement_timeout": "write options=-c%20statement_timeout=MILLISECONDS",
}
_SEVERAL_HOSTS = re.compile(
    r"(?P<start>[^:/]+://(?:[^:/@]*(?::[^@]*)?@)?)(?P<hosts>[^/?@,]+,[^/?@]+)(?P<end>(?:[/?].*)?)"
)
_EXAMPLE = "must be a URL like postgresql://user:password@host:5432/app"


def parse(text: str) -> URL:
    """Convert a URL such as `postgres://…?sslmode=require` for asyncpg.

    Raises ValueError. The message does not contain the URL, which may have a password.
    """
    try:
        url = _parse_hosts(text)
    except (ArgumentError, ValueError):
        raise ValueError(
            f"{_EXAMPLE}, with special characters of the password percent-encoded (@ is %40)"
        ) from None
    if url.get_backend_name() not in {"postgres", "postgresql"}:
        raise ValueError(f"must be a PostgreSQL URL: {_EXAMPLE}")
    url = url.set(drivername="postgresql+asyncpg", query=parse_options(url.query))
    try:
        url.get_dialect()().create_connect_args(url)
    except (ArgumentError, TypeError, ValueError):
        raise ValueError("has a host or port that is not valid") from None
    return url


def has_credentials(url: URL) -> bool:
    """Whether the URL has a password or a client certificate."""
    return bool(url.password) or "sslcert" in url.query


def selects_encryption(url: URL) -> bool:
    """Whether the server is on this machine, or `sslmode` says if the connection is encrypted.

    The modes `allow` and `prefer`, the default, accept an unencrypted connection.
    """
    host = url.query.get("host", url.host or "localhost")
    # Several hosts have ports; a path is a socket.
    hosts = [host] if isinstance(host, str) else [node.rpartition(":")[0] for node in host]
    is_local = all(each in LOCAL_HOSTS or each.startswith("/") for each in hosts)
    return is_local or url.query.get("sslmode", "prefer") not in {"allow", "prefer"}


def _parse_hosts(text: str) -> URL:
    """Parse a URL that may have several hosts, or a percent-encoded path of a socket."""
    if parts := _SEVERAL_HOSTS.fullmatch(text):
        nodes = parts["hosts"].split(",")
        hosts = [node if ":" in node else f"{node}:5432" for node in nodes]
        return make_url(parts["start"] + parts["end"]).update_query_dict({"host": hosts})
    url = make_url(text)
    host, port = unquote(url.host or ""), str(url.port or 5432)
    if "@" in host:  # the rest of a password, which error messages would show
        raise ValueError
    return url.update_query_dict({"host": host, "port": port}) if "/" in host else url


def parse_options(options: Mapping[str, _Value]) -> dict[str, _Value]:
    found = dict(options)
    if "ssl" in found:  # asyncpg's name
        found["sslmode"] = found.pop("ssl")
    if found.pop("statement_cache_size", "") == "0":
        found[POOLER] = "true"
    for name in found.keys() - _OPTIONS:
        advice = _INSTEAD.get(name, "remove it")
        raise ValueError(f"has the option {name}, which is not supported: {advice}")
    for name, allowed in _CHOICES.items():
        if found.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}")
    for name in _NUMBERS:
        if not str(found.get(name, "0")).isdecimal():
            raise ValueError(f"{name} must be a number")
    return found | _certificates(found, binding=found.pop("channel_binding", None) == "require")


def _certificates(options: Mapping[str, object], *, binding: bool) -> dict[str, str]:
    """Return the options that make asyncpg verify the server's certificate, if it must."""
    mode, root = options.get("sslmode"), options.get("sslrootcert")
    if mode == "disable" and (binding or root):
        name = "channel_binding=require" if binding else "sslrootcert"
        raise ValueError(f"{name} needs TLS: write sslmode=verify-full")
    if mode in {"verify-ca", "verify-full"}:
        return {} if root or "sslcert" in options else {"sslrootcert": SYSTEM}
    # asyncpg has no channel binding. A verified certificate stops the same attacks.
    if binding or root == SYSTEM:
        return {"sslmode": "verify-full", "sslrootcert": str(root or SYSTEM)}
    if root and mode != "require":
        raise ValueError("sslrootcert has no effect with this sslmode: write sslmode=verify-full")
    return {}
