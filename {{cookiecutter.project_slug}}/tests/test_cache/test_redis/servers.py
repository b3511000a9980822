"""Servers of other kinds than the suite's own, and ways to their ports."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from ssl import SSLContext

from src.core.redis_url import RedisURL
from tests.proxy import Relay


@asynccontextmanager
async def relay(url: RedisURL, tls: SSLContext | None = None) -> AsyncGenerator[Relay]:
    relay = Relay(partial(asyncio.open_unix_connection, url.options["path"]), tls=tls)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
