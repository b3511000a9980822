"""Connections that a NAT, load balancer or firewall drops without a message."""

import asyncio
import socket

import pytest
from fastapi import FastAPI
from sqlalchemy import URL, text

from src.db import connection
from src.db.session import open_database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES
from tests.proxy import PostgresProxy


async def test_a_dropped_connection_is_replaced_before_its_use(
    app: FastAPI, db_proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_CHECK_SECONDS", 0)
    limit = connection.COMMAND_TIMEOUT_SECONDS / 2  # of the statements, and of the end of the block
    async with asyncio.timeout(limit), open_database(db_proxy.url, pool_size=4) as database:
        client = connect(app, database)
        reads = [client.get(NOTES) for _ in range(4)]
        assert [read.status_code for read in await asyncio.gather(*reads)] == [200] * 4
        monkeypatch.setattr(connection, "PING_TIMEOUT_SECONDS", 0.1)
        db_proxy.freeze_open()
        responses = await asyncio.gather(
            client.get(NOTES), client.post(NOTES, json={"text": "Lamp"})
        )

    assert [response.status_code for response in responses] == [200, 201]


async def test_a_connection_that_responds_is_kept(
    db_proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_CHECK_SECONDS", 0)
    processes = set()
    async with open_database(db_proxy.url, pool_size=1) as database:
        for sessions in (database.reads, database.writes, database.reads):
            async with sessions() as session:
                processes.add(await session.scalar(text("SELECT pg_backend_pid()")))

    assert len(processes) == 1


async def test_a_closed_connection_is_replaced_before_its_use(
    app: FastAPI, db_proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The event loop may not have seen yet that the connection is closed.
    monkeypatch.setattr(connection, "IDLE_CHECK_SECONDS", 0)
    async with open_database(db_proxy.url, pool_size=1) as database:
        client = connect(app, database)
        assert (await client.get(NOTES)).status_code == 200
        await db_proxy.stop()
        await db_proxy.start()
        assert (await client.get(NOTES)).status_code == 200


async def test_the_operating_system_watches_idle_connections(db_proxy: PostgresProxy) -> None:
    async def options_of(url: URL) -> tuple[int, int]:
        async with open_database(url, pool_size=1) as database, database.reads() as session:
            raw = await (await session.connection()).get_raw_connection()
            assert raw.driver_connection
            watched: socket.socket = raw.driver_connection.socket
            return (
                watched.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                watched.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            )

    assert await options_of(db_proxy.url) == (1, 3)
    changed = db_proxy.url.update_query_dict({"keepalives": "0", "keepalives_count": "7"})
    assert await options_of(changed) == (0, 7)
