"""Clients that disconnect before they have the response."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse
from httpx import AsyncClient
from pydantic import BaseModel
from sqlalchemy import URL, event, func, select, text

from src.api.deps import DbReader, DbSession, ReadSession, StreamSession
from src.api.metrics import REQUESTS
from src.api.middleware import WATCH_AFTER_SECONDS
from src.db.reader import Query
from src.db.session import Database, open_database
from tests.fixtures.client import served
from tests.fixtures.notes import NOTES, Note
from tests.fixtures.statements import until_waiting

LIMIT = 30.0
KEY = 7_001  # of the lock that the test holds, so that the endpoints wait
WAIT = text(f"SELECT pg_advisory_xact_lock({KEY})")
WAIT_AT_COMMIT = (
    f"""CREATE FUNCTION test.wait() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_advisory_xact_lock({KEY}); RETURN NULL; END'""",
    """CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON test.note DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION test.wait()""",
)
POOL_SIZE = 2


@pytest.fixture
async def address(fresh_app: FastAPI, fresh_url: URL) -> AsyncGenerator[str]:
    async with (
        open_database(fresh_url, pool_size=POOL_SIZE) as database,
        served(fresh_app, database) as address,
    ):
        yield address


@pytest.fixture
async def admin(fresh_url: URL) -> AsyncGenerator[Database]:
    async with open_database(fresh_url, pool_size=2) as database:
        yield database


@asynccontextmanager
async def locked(admin: Database) -> AsyncGenerator[None]:
    async with asyncio.timeout(LIMIT), admin.transaction() as session:
        await session.execute(WAIT)
        yield


async def texts(admin: Database) -> list[str]:
    async with admin.reads() as session:
        return list(await session.scalars(select(Note.text)))


async def send(address: str, path: str, method: str = "GET") -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return writer


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("path", ["/read", "/rows", "/write", "/stream", "/generator"])
async def test_statements_of_reads_are_cancelled(
    address: str, fresh_app: FastAPI, admin: Database, path: str
) -> None:
    @fresh_app.get("/read")
    async def read(db: ReadSession) -> None:
        await db.execute(WAIT)

    @fresh_app.get("/rows")
    async def read_rows(db: DbReader) -> None:
        await db.rows(Query(BaseModel, select(func.pg_advisory_xact_lock(KEY)), others=1), {})

    @fresh_app.get("/write")
    async def write(db: DbSession) -> None:
        db.add(Note(text="lost"))
        await db.execute(WAIT)

    @fresh_app.get("/stream")
    async def stream(db: StreamSession) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            yield "first"
            await db.execute(WAIT)

        return StreamingResponse(rows())

    @fresh_app.get("/generator")
    async def generator(db: StreamSession) -> AsyncIterator[str]:
        await db.execute(WAIT)
        yield "first"

    async with locked(admin):
        for _ in range(3):  # more than the pool has connections
            writers = [await send(address, path) for _ in range(POOL_SIZE)]
            await until_waiting(admin, POOL_SIZE)
            for writer in writers:
                await close(writer)
            await until_waiting(admin, 0)
        async with AsyncClient(base_url=f"http://{address}", timeout=LIMIT) as client:
            assert (await client.get(NOTES)).json() == []

    if path in {"/read", "/rows", "/write"}:
        assert REQUESTS.labels("GET", path, 499)._value.get() >= 6  # noqa: SLF001


async def test_a_commit_and_its_callbacks_complete(
    address: str, fresh_app: FastAPI, admin: Database
) -> None:
    committed = asyncio.Event()

    @fresh_app.get("/write")
    async def write(db: DbSession) -> None:
        event.listen(db.sync_session, "after_commit", lambda _: committed.set())
        db.add(Note(text="Lamp"))

    async with admin.transaction() as session:
        for statement in WAIT_AT_COMMIT:
            await session.execute(text(statement))
    async with locked(admin):
        writer = await send(address, "/write")
        await until_waiting(admin, 1)
        await asyncio.sleep(2 * WATCH_AFTER_SECONDS)
        await close(writer)
        await asyncio.sleep(2 * WATCH_AFTER_SECONDS)  # the request is cancelled
        assert await texts(admin) == []
    await asyncio.wait_for(committed.wait(), LIMIT)
    assert await texts(admin) == ["Lamp"]


async def test_other_methods_run_to_their_end(
    address: str, fresh_app: FastAPI, admin: Database
) -> None:
    ended = asyncio.Event()

    @fresh_app.post("/write")
    async def write(db: DbSession) -> None:
        event.listen(db.sync_session, "after_commit", lambda _: ended.set())
        await db.execute(WAIT)
        db.add(Note(text="Lamp"))

    async with locked(admin):
        writer = await send(address, "/write", "POST")
        await until_waiting(admin, 1)
        await asyncio.sleep(2 * WATCH_AFTER_SECONDS)
        await close(writer)
        await asyncio.sleep(2 * WATCH_AFTER_SECONDS)
    await asyncio.wait_for(ended.wait(), LIMIT)
    assert await texts(admin) == ["Lamp"]


async def test_work_after_the_response_completes(address: str, fresh_app: FastAPI) -> None:
    disconnected, done = asyncio.Event(), asyncio.Event()

    @fresh_app.get("/")
    async def respond(request: Request, tasks: BackgroundTasks) -> str:
        async def work() -> None:
            await disconnected.wait()
            await asyncio.sleep(2 * WATCH_AFTER_SECONDS)
            await request.is_disconnected()  # reads the message of the empty body
            if await request.is_disconnected():
                done.set()

        tasks.add_task(work)
        await asyncio.sleep(2 * WATCH_AFTER_SECONDS)  # the middleware watches
        return "done"

    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    await reader.readuntil(b'"done"')
    await close(writer)
    disconnected.set()
    await asyncio.wait_for(done.wait(), LIMIT)


@pytest.mark.parametrize("seconds", [0, 2 * WATCH_AFTER_SECONDS], ids=["early", "watched"])
async def test_endpoints_can_read_the_body_and_see_the_disconnect(
    address: str, fresh_app: FastAPI, seconds: float
) -> None:
    started, seen = asyncio.Event(), asyncio.Event()

    @fresh_app.get("/body")
    async def body(request: Request) -> int:
        await asyncio.sleep(seconds)
        return len(await request.body())

    @fresh_app.get("/poll")
    async def poll(request: Request) -> None:
        await asyncio.sleep(seconds)
        try:
            assert not await request.is_disconnected()
            started.set()
            while not await request.is_disconnected():  # noqa: ASYNC110 - what is tested
                await asyncio.sleep(0.01)
        finally:
            seen.set()

    @fresh_app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            for _ in range(3):
                yield "part"
                await asyncio.sleep(seconds)

        await asyncio.sleep(seconds)
        return StreamingResponse(parts())

    async with AsyncClient(base_url=f"http://{address}", timeout=LIMIT) as client:
        assert (await client.get("/body")).json() == 0
        assert (await client.request("GET", "/body", content=b"x" * 300_000)).json() == 300_000
        assert (await client.get("/stream")).text == "part" * 3

    writer = await send(address, "/poll")
    await asyncio.wait_for(started.wait(), LIMIT)
    await close(writer)
    await asyncio.wait_for(seen.wait(), LIMIT)
