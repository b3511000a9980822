"""Correct and incorrect uses of sessions: nothing is lost, and no connection leaks."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import cast
from uuid import UUID

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.exceptions import DependencyScopeError
from fastapi.responses import StreamingResponse
from httpx import AsyncClient
from pydantic import SecretStr
from sqlalchemy import URL, QueuePool, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from src.api.deps import (
    AppDatabase,
    AppSettings,
    DbSession,
    ReadSession,
    StreamSession,
)
from src.core.config import Settings
from src.db.session import (
    ROWS_PER_FETCH,
    Database,
    ReadOnlySessionError,
    SessionUseError,
    open_database,
)
from tests.fixtures.client import connect, served
from tests.fixtures.notes import Note, NoteBody, NoteNotFoundError, NoteRepository
from tests.fixtures.statements import recorded

WORK = "/work"
KEYED = [{}, {"Idempotency-Key": "key"}]


@pytest.fixture
def database(committing_database: Database) -> Database:
    return committing_database


@pytest.fixture
def client(fresh_app: FastAPI, database: Database) -> AsyncClient:
    return connect(fresh_app, database)


def checked_out(database: Database) -> int:
    engine = cast(AsyncEngine, database.writes.kw["bind"])
    return cast(QueuePool, engine.pool).checkedout()


async def texts(database: Database) -> list[str]:
    async with database.reads() as session:
        return list(await session.scalars(select(Note.text).order_by(Note.id)))


class TestAfterTheEndpoint:
    @pytest.mark.parametrize("headers", KEYED, ids=["plain", "keyed"])
    async def test_work_cannot_use_the_session_of_the_request(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database, headers: dict[str, str]
    ) -> None:
        @fresh_app.post(WORK)
        async def work(db: DbSession, reads: ReadSession, tasks: BackgroundTasks) -> None:
            async def add() -> None:
                for session in (db, reads):
                    with pytest.raises(SessionUseError, match=r"database\.transaction\(\)"):
                        await session.scalar(text("SELECT 1"))
                    with pytest.raises(SessionUseError, match="AppDatabase"):
                        session.add(Note(text="lost"))
                await db.scalar(text("SELECT 1"))

            db.add(Note(text="first"))
            tasks.add_task(add)

        with pytest.raises(SessionUseError):
            await client.post(WORK, headers=headers)

        assert checked_out(database) == 0
        assert await texts(database) == ["first"]

    async def test_stream_cannot_use_the_session_of_the_endpoint(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        @fresh_app.get("/{kind}")
        async def stream(kind: str, db: DbSession, reads: ReadSession) -> StreamingResponse:
            session = db if kind == "writes" else reads

            async def rows() -> AsyncGenerator[str]:
                async for note in await session.stream_scalars(select(Note.text)):
                    yield note

            return StreamingResponse(rows())

        for kind in ("writes", "reads"):
            with pytest.raises(SessionUseError, match="StreamSession"):
                await client.get(f"/{kind}")

        assert checked_out(database) == 0


class TestCommit:
    @pytest.mark.parametrize("headers", KEYED, ids=["plain", "keyed"])
    @pytest.mark.parametrize("how", ["commit", "begin", "sync"])
    async def test_by_an_endpoint_is_refused_and_nothing_is_written(
        self,
        client: AsyncClient,
        fresh_app: FastAPI,
        database: Database,
        headers: dict[str, str],
        how: str,
    ) -> None:
        @fresh_app.post(WORK)
        async def work(db: DbSession) -> None:
            if how == "begin":
                async with db.begin():
                    db.add(Note(text="lost"))
            db.add(Note(text="lost"))
            await db.flush()
            await (db.commit() if how == "commit" else db.run_sync(lambda sync: sync.commit()))

        response = await client.post(WORK, headers=headers)

        assert response.status_code == 500
        assert checked_out(database) == 0
        assert await texts(database) == []

    async def test_in_a_transaction_of_a_task_is_refused(self, database: Database) -> None:
        with pytest.raises(SessionUseError, match="commits by itself"):  # noqa: PT012 - one block
            async with database.transaction() as db:
                db.add(Note(text="lost"))
                await db.commit()

        assert await texts(database) == []

    @pytest.mark.parametrize("headers", KEYED, ids=["plain", "keyed"])
    async def test_savepoint_rolls_back_a_part(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database, headers: dict[str, str]
    ) -> None:
        @fresh_app.post(WORK)
        async def work(db: DbSession) -> None:
            db.add(Note(text="first"))
            with pytest.raises(IntegrityError):
                async with db.begin_nested():
                    db.add(Note(text=None))
            db.add(Note(text="second"))

        assert (await client.post(WORK, headers=headers)).status_code == 200

        assert await texts(database) == ["first", "second"]

    @pytest.mark.parametrize("headers", KEYED, ids=["plain", "keyed"])
    async def test_after_a_rollback_stores_the_rest(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database, headers: dict[str, str]
    ) -> None:
        @fresh_app.post(WORK)
        async def work(db: DbSession) -> str:
            db.add(Note(text=None))
            with pytest.raises(IntegrityError):
                await db.flush()
            await db.rollback()
            note = Note(text="second")
            db.add(note)
            await db.flush()
            await db.refresh(note)
            return str(note.id)

        first = await client.post(WORK, headers=headers)
        again = await client.post(WORK, headers=headers)

        assert (first.status_code, again.status_code) == (200, 200)
        assert (first.json() == again.json()) is bool(headers)
        assert len(await texts(database)) == (1 if headers else 2)

    async def test_after_a_caught_error_fails(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        """PostgreSQL turns a COMMIT of a failed transaction into a ROLLBACK, without an error."""

        @fresh_app.post(WORK)
        async def work(db: DbSession) -> None:
            db.add(Note(text="lost"))
            await db.flush()
            with pytest.raises(IntegrityError):
                await db.execute(text("INSERT INTO test.note (text) VALUES (NULL)"))

        assert (await client.post(WORK)).status_code == 500
        assert await texts(database) == []

    async def test_statement_after_a_caught_error_explains_itself(self, database: Database) -> None:
        async with database.writes() as db:
            with pytest.raises(IntegrityError):
                await db.execute(text("INSERT INTO test.note (text) VALUES (NULL)"))
            with pytest.raises(SessionUseError, match="begin_nested"):
                await db.scalar(text("SELECT 1"))


async def test_changes_in_a_read_session_are_refused(
    client: AsyncClient, fresh_app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the response would be a 200, and the change lost."""

    @fresh_app.post(WORK)
    async def work(db: ReadSession) -> None:
        db.add(Note(text="lost"))

    assert (await client.post(WORK)).status_code == 500
    assert "Use `DbSession` to write" in caplog.text


@pytest.mark.parametrize("kind", ["writes", "reads"])
async def test_gather_on_one_session_is_a_readable_error(
    client: AsyncClient,
    fresh_app: FastAPI,
    database: Database,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @fresh_app.get("/")
    async def both(db: DbSession, reads: ReadSession) -> None:
        session: AsyncSession = db if kind == "writes" else reads
        await asyncio.gather(session.scalar(text("SELECT 1")), session.scalar(text("SELECT 2")))

    assert (await client.get("/")).status_code == 500

    assert "open a session for each" in caplog.text
    assert checked_out(database) == 0


@pytest.mark.parametrize("kind", ["writes", "reads"])
async def test_statement_of_a_task_that_outlives_the_endpoint_leaks_nothing(
    client: AsyncClient, fresh_app: FastAPI, database: Database, kind: str
) -> None:
    running = []

    @fresh_app.get("/")
    async def start(db: DbSession, reads: ReadSession) -> None:
        session: AsyncSession = db if kind == "writes" else reads
        await session.scalar(text("SELECT 1"))

        async def outlive() -> None:
            await session.scalar(text("SELECT pg_sleep(0.2)"))
            await session.scalar(text("SELECT 1"))

        running.append(asyncio.create_task(outlive()))
        await asyncio.sleep(0.02)  # the statement is sent

    assert (await client.get("/")).status_code == 200

    await asyncio.gather(*running, return_exceptions=True)
    assert checked_out(database) == 0


def test_dependency_that_outlives_the_session_is_refused(fresh_app: FastAPI) -> None:
    async def audit(_db: DbSession) -> AsyncIterator[None]:
        yield

    with pytest.raises(DependencyScopeError, match='with scope "function"'):
        fresh_app.add_api_route(WORK, lambda: None, dependencies=[Depends(audit)])


@pytest.fixture
async def small_database(committing_url: URL) -> AsyncGenerator[Database]:
    """A database with a pool of one connection, which a leak would exhaust."""
    async with open_database(committing_url, pool_size=1) as database:
        yield database


@pytest.fixture
async def address(fresh_app: FastAPI, small_database: Database) -> AsyncGenerator[str]:
    """The host and port of a server that runs `fresh_app`."""
    async with served(fresh_app, small_database) as address:
        yield address


class TestStream:
    @pytest.fixture(autouse=True)
    async def _rows(self, fresh_app: FastAPI, small_database: Database) -> None:
        async with small_database.transaction() as db:
            db.add_all(Note(text=f"{n} {'x' * 1000}") for n in range(3000))

        @fresh_app.get("/response")
        async def response(db: StreamSession) -> StreamingResponse:
            async def rows() -> AsyncGenerator[str]:
                async for note in await db.stream_scalars(select(Note)):
                    yield f"{note.text}\n"

            return StreamingResponse(rows())

        @fresh_app.get("/generator")
        async def generator(db: StreamSession) -> AsyncGenerator[NoteBody]:
            async for note in await db.stream_scalars(select(Note)):
                yield NoteBody.model_construct(text=note.text)

        @fresh_app.get("/count")
        async def count(db: ReadSession) -> int:
            return await db.scalar(select(func.count()).select_from(Note)) or 0

    @pytest.mark.parametrize("path", ["/response", "/generator"])
    async def test_sends_all_rows_and_frees_the_connection(self, address: str, path: str) -> None:
        async with AsyncClient(base_url=f"http://{address}", timeout=60) as client:
            assert len((await client.get(path)).text.splitlines()) == 3000
            for _ in range(3):  # the client disconnects
                async with client.stream("GET", path) as response:
                    async for _chunk in response.aiter_raw():
                        break
            assert (await client.get("/count")).json() == 3000

    async def test_reads_few_rows_at_a_time(self, small_database: Database) -> None:
        async with small_database.streams() as session:
            with recorded(small_database) as sent:
                rows = await session.stream_scalars(select(Note))
                await anext(aiter(rows))
            loaded = sum(isinstance(each, Note) for each in session.identity_map.values())

        assert loaded <= ROWS_PER_FETCH
        assert sent == ["BEGIN", "SELECT", "ROLLBACK"]

    async def test_refuses_changes(self, small_database: Database) -> None:
        async with small_database.streams() as session:
            session.add(Note(text="lost"))
            with pytest.raises(ReadOnlySessionError, match="DbSession"):
                await session.flush()

    async def test_of_a_read_session_is_refused(self, small_database: Database) -> None:
        async with small_database.reads() as session:
            with pytest.raises(SessionUseError, match="StreamSession"):
                await session.stream_scalars(select(Note))


class TestWebSocket:
    async def test_commits_before_each_message_and_holds_no_connection(
        self, address: str, fresh_app: FastAPI
    ) -> None:
        """Three sockets write and read, although the pool has one connection."""

        @fresh_app.websocket("/notes")
        async def notes(websocket: WebSocket, db: DbSession, reads: ReadSession) -> None:
            await websocket.accept()
            async for message in websocket.iter_text():
                db.add(Note(text=message))
                await db.flush()
                await websocket.send_text("stored")
                count = await reads.scalar(select(func.count()).select_from(Note))
                await websocket.send_text(str(count))

        async with AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(connect_socket(f"ws://{address}/notes"))
                for _ in range(3)
            ]
            for number, socket in enumerate(sockets, start=1):
                await socket.send("Lamp")
                assert await socket.recv() == "stored"
                assert await socket.recv() == str(number)

    async def test_error_rolls_back_since_the_last_message(
        self, address: str, fresh_app: FastAPI, small_database: Database
    ) -> None:
        """A message that another asyncio task sends commits nothing."""

        @fresh_app.websocket("/notes")
        async def notes(websocket: WebSocket, db: DbSession) -> None:
            await websocket.accept()
            async for message in websocket.iter_text():
                db.add(Note(text=message))
                await db.flush()
                if message == "second":
                    await asyncio.create_task(websocket.send_text("alive"))
                    raise RuntimeError

        async with connect_socket(f"ws://{address}/notes") as socket:
            await socket.send("first")
            await socket.send("second")
            assert await socket.recv() == "alive"
            with pytest.raises(ConnectionClosedError):
                await socket.recv()

        assert await texts(small_database) == ["first"]

    async def test_domain_error_closes_with_the_reason(
        self, address: str, fresh_app: FastAPI
    ) -> None:
        """Before the socket is accepted, the response is a problem."""

        @fresh_app.websocket("/notes/{when}")
        async def notes(websocket: WebSocket, db: ReadSession, when: str) -> None:
            if when == "after":
                await websocket.accept()
            await NoteRepository(db).get_or_raise(UUID(int=0), NoteNotFoundError)

        async with connect_socket(f"ws://{address}/notes/after") as socket:
            with pytest.raises(ConnectionClosedError, match=r"1008.*Note not found: There is no"):
                await socket.recv()
        with pytest.raises(InvalidStatus, match="404"):
            await connect_socket(f"ws://{address}/notes/before")

    async def test_settings_database_and_api_key(
        self, fresh_app: FastAPI, small_database: Database, settings: Settings
    ) -> None:
        @fresh_app.websocket("/notes")
        async def notes(websocket: WebSocket, settings: AppSettings, database: AppDatabase) -> None:
            async with database.transaction() as db:
                db.add(Note(text="Lamp"))
            await websocket.accept()
            await websocket.send_text(settings.ENV)

        key = "k" * 32
        locked = settings.model_copy(update={"API_KEYS": [SecretStr(key)]})
        async with served(fresh_app, small_database, locked) as address:
            url = f"ws://{address}/notes"
            with pytest.raises(InvalidStatus, match="401"):
                await connect_socket(url)
            async with connect_socket(url, additional_headers={"X-API-Key": key}) as socket:
                assert await socket.recv() == "test"
