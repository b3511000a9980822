"""Proxies in front of a server, to simulate failures of the network and the server."""

import asyncio
import socket
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ssl import SSLContext

from sqlalchemy import URL

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Listens on `port` of 127.0.0.1, and forwards to the connections that `connect` opens."""

    def __init__(
        self, connect: Callable[[], Awaitable[Stream]], *, tls: SSLContext | None = None
    ) -> None:
        self._connect = connect
        self._tls = tls
        self._thawed = asyncio.Event()
        self.port = 0
        self.delay: Callable[[bytes], float] = lambda _: 0  # seconds until a request is forwarded
        self._reserved: socket.socket | None = None

    async def start(self) -> None:
        self._running = True
        self._thawed.set()
        self._tasks: set[asyncio.Task[None]] = set()
        if not self._reserved:
            # Bound until the end, so that no other process gets the port while the proxy is stopped.
            self._reserved = _bound(0)
            weakref.finalize(self, self._reserved.close)
            self.port = self._reserved.getsockname()[1]
        self._server = await asyncio.start_server(
            self._accept, sock=_bound(self.port), ssl=self._tls
        )

    async def stop(self) -> None:
        """Refuse new connections and drop open ones, like a killed server."""
        self._running = False
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freeze(self) -> None:
        """Accept connections but forward nothing, like a server that hangs."""
        self._thawed.clear()

    def freeze_open(self) -> None:
        """Forward nothing more on open connections, like a NAT that has forgotten them."""
        self.freeze()
        self._thawed = asyncio.Event()
        self._thawed.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._running:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._forward((reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, client: Stream) -> None:
        writers, thawed = [client[1]], self._thawed
        try:
            server = await self._connect()
            writers.append(server[1])
            await asyncio.gather(
                self._pump(client[0], server[1], thawed, self._wait),
                self._pump(server[0], client[1], thawed),
            )
        except OSError:
            pass  # the server is not running
        finally:
            for writer in writers:
                writer.transport.abort()

    async def _wait(self, request: bytes) -> None:
        await asyncio.sleep(self.delay(request))

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        thawed: asyncio.Event,
        wait: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65536):
                await thawed.wait()
                if wait:
                    await wait(chunk)
                writer.write(chunk)
                await writer.drain()
        writer.close()


def _bound(port: int) -> socket.socket:
    """Return a socket that shares its port with others of this process, if the system allows it."""
    bound = socket.socket()
    option = getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR)  # Windows has only the latter
    bound.setsockopt(socket.SOL_SOCKET, option, 1)
    bound.bind(("127.0.0.1", port))
    return bound


class PostgresProxy(Proxy):
    """A proxy for PostgreSQL; clients connect to `url`."""

    def __init__(self, target: URL, *, tls: SSLContext | None = None) -> None:
        super().__init__(self._connect_to_postgres, tls=tls)
        self._target = target

    @property
    def url(self) -> URL:
        return self._target.set(host="127.0.0.1", port=self.port, query={})

    async def _connect_to_postgres(self) -> Stream:
        host = str(self._target.host or self._target.query["host"])
        port = int(self._target.port or str(self._target.query["port"]))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)
