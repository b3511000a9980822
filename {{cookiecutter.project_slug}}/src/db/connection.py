"""Connections of asyncpg with the options of `src/core/postgres_url.py`."""

import select
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
    at_begin = ""  # statements that follow BEGIN in the same message
    is_closing = False

    def __init__(self, protocol: Any, transport: Any, *arguments: Any) -> None:
        super().__init__(protocol, transport, *arguments)
        self.socket = transport.get_extra_info("socket")

    async def execute(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109 - as inherited
    ) -> str:
        if query.startswith("BEGIN"):
            query += self.at_begin
        status: str = await super().execute(query, *args, timeout=timeout)
        return status

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as inherited
        """Wait only shortly for the server, which may be gone: a process must be able to stop."""
        self.is_closing = True
        seconds = CLOSE_TIMEOUT_SECONDS if timeout is None else min(timeout, CLOSE_TIMEOUT_SECONDS)
        with suppress(TimeoutError):
            await super().close(timeout=seconds)

    def terminate(self) -> None:
        """Let `close` first cancel the statement that runs, if it does so in the background.

        Otherwise PostgreSQL continues it. anyio, of which Starlette's streams are made, cancels a
        task again while that closes its connection.
        """
        if not self.is_closing:
            super().terminate()


def split(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL without its options, and the options as arguments of `connect`.

    Raises DatabaseUnavailableError if a file that the URL names does not exist.
    """
    options = {name: str(value) for name, value in url.query.items()}
    for name in postgres_url.FILES:
        path = options.get(name)
        if path and path != postgres_url.SYSTEM and not Path(path).is_file():
            raise DatabaseUnavailableError(f"DATABASE_URL: {name} is not a file: {path}")
    dsn = urlencode({name: options[name] for name in postgres_url.ASYNCPG if name in options})
    arguments: dict[str, Any] = {
        "async_creator_fn": connect,
        "dsn": f"postgresql:?{dsn}",
        "timeout": float(options.get("connect_timeout", CONNECT_TIMEOUT_SECONDS)) or None,
        "command_timeout": float(options.get("command_timeout", COMMAND_TIMEOUT_SECONDS)) or None,
        "tcp": {name: int(options.get(name, value)) for name, value in postgres_url.TCP.items()},
    }
    if options.get("sslrootcert") == postgres_url.SYSTEM:
        arguments["ssl"] = True
    given = options.get("options", "")  # a timeout of the user has priority
    names = [name for name in postgres_url.TIMEOUTS if name in options and name not in given]
    timeouts = {name: options[name] for name in names}
    size = options.get("prepared_statement_cache_size")
    if options.get(postgres_url.POOLER) == "true" or size == "0":
        # An unnamed statement is parsed and executed in one message, so by one server.
        arguments |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
            # A pooler refuses settings when the connection starts, and shares its sessions.
            "at_begin": "".join(f"; SET LOCAL {each} = '{timeouts[each]}'" for each in timeouts),
        }
    else:
        arguments["server_settings"] = timeouts
        if size:
            arguments["prepared_statement_cache_size"] = int(size)
    location = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    return url.set(query=location), arguments


async def connect(*, tcp: Mapping[str, int], at_begin: str = "", **options: Any) -> Connection:
    """Raises DatabaseUnavailableError."""
    try:
        connection: Connection = await asyncpg.connect(connection_class=Connection, **options)
    except _ERRORS as error:
        host, port = options.get("host", "localhost"), options.get("port", 5432)
        nodes = zip(host, port, strict=True) if isinstance(host, list) else [(host, port)]
        where = ", ".join(f"{name}:{number}" for name, number in nodes)
        reason = str(error) or "no response in time"
        if "startup parameter" in reason:
            reason += ". Behind a connection pooler, set DATABASE_POOLER=true."
        raise DatabaseUnavailableError(f"PostgreSQL at {where} is unavailable: {reason}") from error
    connection.at_begin = at_begin
    _set_tcp_options(connection.socket, tcp)
    return connection


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

    A NAT, load balancer or firewall may drop an idle connection without a message. A server that
    restarts closes it, which the event loop may not have read yet.
    """
    driver: Connection = connection.driver_connection
    idle_since = record.info.get("idle_since")
    if not (driver.is_closing or driver.is_closed()):
        if idle_since is None:
            return
        if monotonic() - idle_since < IDLE_CHECK_SECONDS and not _has_unread_data(driver.socket):
            return
        try:
            connection.run_async(lambda it: it.execute("SELECT 1", timeout=PING_TIMEOUT_SECONDS))
        except _ERRORS:
            driver.terminate()  # without waiting for the peer
        else:
            return
    raise DisconnectionError


def _has_unread_data(connected: socket.socket) -> bool:
    """Return whether the server sent something, or closed the connection, while it was idle."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([connected], [], [], 0)[0])
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))
