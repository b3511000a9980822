"""The load generator of `make bench`."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import cycle
from urllib.parse import SplitResult, urlsplit

import pytest

from dev.load import Load, run_load
from dev.server import free_port

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def server(respond: Callable[[StreamWriter], Awaitable[None]]) -> AsyncGenerator[SplitResult]:
    """Call `respond` for each request."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                await respond(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        host, port = listener.sockets[0].getsockname()
        yield urlsplit(f"http://{host}:{port}")


async def test_statuses_are_counted_on_connections_that_stay_open() -> None:
    statuses = cycle([b"200 OK", b"503 Unavailable"])
    connections = set()

    async def respond(writer: StreamWriter) -> None:
        connections.add(writer)
        writer.write(OK.replace(b"200 OK", next(statuses)))

    async with server(respond) as url:
        load = await run_load(url, lambda: REQUEST, clients=2, seconds=0.2)
    assert load.results.keys() == {200, 503}
    assert abs(load.results[200] - load.results[503]) <= 1
    assert len(load.latencies) == load.results.total() > 10
    assert len(connections) == 2


async def test_clients_connect_again_and_count_lost_responses() -> None:
    endings = cycle([OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"", b"nonsense"])

    async def respond(writer: StreamWriter) -> None:
        writer.write(next(endings))
        writer.close()

    async with server(respond) as url:
        load = await run_load(url, lambda: REQUEST, clients=1, seconds=0.2)
    assert load.results.keys() == {200, "no response"}
    assert len(load.latencies) == load.results[200]


async def test_a_refused_connection_is_counted() -> None:
    url = urlsplit(f"http://127.0.0.1:{free_port()}")
    load = await run_load(url, lambda: REQUEST, clients=1, seconds=0.04)  # less than RETRY_SECONDS
    assert load.results == {"no connection": 1}


async def test_last_responses_are_part_of_the_result() -> None:
    async def respond(writer: StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(OK)

    async with server(respond) as url:
        load = await run_load(url, lambda: REQUEST, clients=3, seconds=0.1)
    assert load.results == {200: 3}
    assert 0.2 < load.seconds < load.latencies[0] + 1


async def test_an_endless_response_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dev.load.PATIENCE_SECONDS", 0.1)

    async def respond(writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")

    async with server(respond) as url:
        load = await run_load(url, lambda: REQUEST, clients=2, seconds=0.1)
    assert load.results == {"no response": 2}
    assert load.rate == 0


def test_percentiles_and_totals() -> None:
    loads = [Load(1, [number / 1000]) for number in range(100, 0, -1)]
    total = Load.total(loads)
    assert [total.percentile(percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert total.rate == 1
