"""Connections of asyncpg with the options of `src/core/postgres_url.py`."""

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import asyncpg
from sqlalchemy import URL
from sqlalchemy.exc import DisconnectionError

from src.core import postgres_url

CONNECT_TIMEOUT_SECONDS = 5
COMMAND_TIMEOUT_SECONDS = 30
# A connection that was idle for longer is checked before its use. HikariCP has the same limit.
IDLE_CHECK_SECONDS = 0.5
PING_TIMEOUT_SECONDS = 1.0  # less than the limits of readiness checks
CLOSE_TIMEOUT_SECONDS = 0.5
# Linux closes a connection if the peer does not acknowledge data or keepalive probes in time.
TCP_OPTIONS = {
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
_NAMES = {  # of the operating system; macOS and Windows lack some
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
_ERRORS = (
    OSError,  # of which TimeoutError is a kind
    UnicodeError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class DatabaseUnavailableError(Exception):
    """PostgreSQL is unavailable, or failed in a way that a retry may fix."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    def __init__(self, protocol: Any, transport: Any, *arguments: Any) -> None:
        super().__init__(protocol, transport, *arguments)
        self.socket = transport.get_extra_info("socket")

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as inherited
        """Wait only shortly for the server, which may be gone: a process must be able to stop."""
        seconds = CLOSE_TIMEOUT_SECONDS if timeout is None else min(timeout, CLOSE_TIMEOUT_SECONDS)
        with suppress(TimeoutError):
            await super().close(timeout=seconds)


def split(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL without its options, and the options as arguments of `connect`.

    Raises DatabaseUnavailableError if a file that the URL names does not exist.
    """
    options = {name: str(value) for name, value in url.query.items()}
    for name in postgres_url.FILES:
        path = options.get(name)
        if path and path != postgres_url.SYSTEM and not Path(path).is_file():
            raise DatabaseUnavailableError(f"DATABASE_URL: {name} is not a file: {path}")
    arguments: dict[str, Any] = {
        "async_creator_fn": connect,
        "timeout": float(options.get("connect_timeout", CONNECT_TIMEOUT_SECONDS)) or None,
        "command_timeout": float(options.get("command_timeout", COMMAND_TIMEOUT_SECONDS)) or None,
        "server_settings": _pick(options, postgres_url.SERVER_SETTINGS),
        "tcp": TCP_OPTIONS | {k: int(v) for k, v in _pick(options, postgres_url.TCP).items()},
        "target_session_attrs": options.get("target_session_attrs", "any"),
        **_tls(options),
    }
    size = options.get("prepared_statement_cache_size")
    if options.get(postgres_url.POOLER) == "true" or size == "0":
        # An unnamed statement is parsed and executed in one message, so by one server.
        arguments |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
        }
    elif size:
        arguments["prepared_statement_cache_size"] = int(size)
    location = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    return url.set(query=location), arguments


def _tls(options: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that asyncpg only accepts in a DSN, or `ssl=True`."""
    names = postgres_url.TLS + postgres_url.AUTHENTICATION
    if options.get("sslrootcert") != postgres_url.SYSTEM:
        return {"dsn": f"postgresql:?{urlencode(_pick(options, names))}"}
    dsn = urlencode(_pick(options, ("sslnegotiation", *postgres_url.AUTHENTICATION)))
    return {"dsn": f"postgresql:?{dsn}", "ssl": True}


def _pick(options: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: options[name] for name in names if name in options}


async def connect(*, tcp: Mapping[str, int] = TCP_OPTIONS, **options: Any) -> Connection:
    """Connect with asyncpg to the first suitable host.

    The timeout is for each host, as in libpq: the first one may not respond. Raises
    DatabaseUnavailableError if no server can be reached.
    """
    hosts, ports = options.pop("host", None), options.pop("port", None)
    several = isinstance(hosts, list)
    nodes = list(zip(hosts, ports, strict=True)) if several else [(hosts, ports)]
    wanted = options.pop("target_session_attrs", "any")
    passes = ["standby", "any"] if several and wanted == "prefer-standby" else [wanted]
    causes = []
    for attributes in passes:
        for host, port in nodes:
            try:
                connection: Connection = await asyncpg.connect(
                    host=host,
                    port=port,
                    target_session_attrs=attributes,
                    connection_class=Connection,
                    **options,
                )
            except _ERRORS as error:
                where = f"{host or 'localhost'}:{port or 5432}"
                causes.append((f"PostgreSQL at {where} is unavailable: {_describe(error)}", error))
            else:
                _set_tcp_options(connection.socket, tcp)
                return connection
    raise DatabaseUnavailableError(". ".join(dict(causes))) from causes[-1][1]


def _describe(error: BaseException) -> str:
    text = str(error) or "no response in time"
    if "unsupported startup parameter" in text:
        text += ". The pooler refuses this option: set it with ALTER ROLE ... SET instead"
    return text


def _set_tcp_options(connected: socket.socket, values: Mapping[str, int]) -> None:
    if connected.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, values["keepalives"])
    for name, constant in _NAMES.items():
        if hasattr(socket, constant) and values[name]:
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, constant), values[name])


def start_idling(_connection: object, record: Any) -> None:
    """Listen for the pool's event `checkin`."""
    record.info["idle_since"] = monotonic()


def check_idle(connection: Any, record: Any, _proxy: object) -> None:
    """Listen for the pool's event `checkout`: replace a connection that does not work any more.

    A NAT, load balancer or firewall may drop an idle connection without a message.
    """
    driver: Connection = connection.driver_connection
    idle_since = record.info.get("idle_since")
    if not driver.is_closed():
        if idle_since is None or monotonic() - idle_since < IDLE_CHECK_SECONDS:
            return
        try:
            connection.run_async(lambda it: it.execute("SELECT 1", timeout=PING_TIMEOUT_SECONDS))
        except _ERRORS:
            driver.terminate()  # at once: closing would wait for the peer
        else:
            return
    raise DisconnectionError
