"""Idempotency keys and replayed responses."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Cookie,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
)
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBasic
from httpx import AsyncClient, Response
from pydantic import BaseModel, SecretStr
from sqlalchemy import func, select, text

from main import create_application
from src.api.auth import allow_anonymous
from src.api.deps import DbSession, NoIdempotencyKey
from src.api.rate_limits import rate_limit
from src.core.config import Settings
from src.db.models.idempotency import IdempotencyKey
from src.db.session import Database
from src.services.api_key import ApiKeyService
from tests.fixtures.client import connect
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES, Note
from tests.fixtures.statements import recorded

WORK = "/work"
TIMEOUT_SECONDS = 60
LAMP = {"text": "Lamp"}


def keyed(key: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": f'"{uuid4()}"' if key is None else key}


async def count(database: Database, model: type[Note | IdempotencyKey] = Note) -> int:
    async with database.reads() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


async def execute(database: Database, statement: str) -> None:
    async with database.transaction() as session:
        await session.execute(text(statement))


async def end_other_connections(database: Database) -> None:
    await execute(
        database,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


async def post_twice(client: AsyncClient, path: str) -> tuple[Response, Response]:
    """Send the same request with the same key, one after the other."""
    headers = keyed()
    first = await client.post(path, json=LAMP, headers=headers)
    return first, await client.post(path, json=LAMP, headers=headers)


def is_replay(response: Response) -> bool:
    return "idempotency-replayed" in response.headers


def assert_problem(response: Response, status: int, kind: str = "about:blank") -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == kind
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.fixture
def database(committing_database: Database) -> Database:
    return committing_database


@pytest.fixture
def client(fresh_app: FastAPI, database: Database) -> AsyncClient:
    """A client of `fresh_app`, so that tests can add endpoints. Its requests commit."""
    return connect(fresh_app, database)


class TestReplay:
    async def test_is_identical_to_the_first_response(
        self, client: AsyncClient, database: Database
    ) -> None:
        first, second = await post_twice(client, NOTES)

        assert (first.status_code, second.status_code) == (201, 201)
        assert second.content == first.content
        assert (is_replay(first), second.headers["idempotency-replayed"]) == (False, "true")
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        for each in (first, second):
            each.headers.pop("x-request-id")
            each.headers.pop("idempotency-replayed", None)
        assert second.headers.multi_items() == first.headers.multi_items()
        assert "location" in second.headers
        assert await count(database) == 1

    async def test_needs_the_same_key(self, client: AsyncClient) -> None:
        first = await client.post(NOTES, json=LAMP, headers=keyed('"one"'))
        other = await client.post(NOTES, json=LAMP, headers=keyed('"two"'))
        unquoted = await client.post(NOTES, json=LAMP, headers=keyed("one"))
        longest = await client.post(NOTES, json=LAMP, headers=keyed("x" * 255))

        assert other.json()["id"] != first.json()["id"]
        assert unquoted.json() == first.json()
        assert longest.status_code == 201

    async def test_works_for_streams_and_endpoints_without_a_session(
        self, client: AsyncClient, fresh_app: FastAPI
    ) -> None:
        calls = []

        @fresh_app.post("/stream")
        async def stream(db: DbSession) -> StreamingResponse:
            async def chunks() -> AsyncGenerator[bytes]:
                for _ in range(3):
                    yield str(await db.scalar(select(func.random()))).encode()

            return StreamingResponse(chunks())

        @fresh_app.post(WORK, status_code=204)
        async def work() -> None:
            calls.append(WORK)

        @fresh_app.post("/threaded", status_code=204)
        def work_in_a_thread() -> None:
            calls.append("/threaded")

        for path, status in (("/stream", 200), (WORK, 204), ("/threaded", 204)):
            first, second = await post_twice(client, path)
            assert (first.status_code, second.status_code) == (status, status)
            assert first.content == second.content
            assert is_replay(second)
        assert calls == [WORK, "/threaded"]

    async def test_expires_after_a_day(self, client: AsyncClient, database: Database) -> None:
        headers = keyed()
        first = await client.post(NOTES, json=LAMP, headers=headers)
        await make_older(database, hours=23)
        assert is_replay(await client.post(NOTES, json=LAMP, headers=headers))
        await make_older(database, hours=2)

        second = await client.post(NOTES, json=LAMP, headers=headers)
        third = await client.post(NOTES, json=LAMP, headers=headers)

        assert (is_replay(second), is_replay(third)) == (False, True)
        assert first.json() != second.json() == third.json()

    async def test_expired_keys_are_deleted_in_small_batches(
        self, client: AsyncClient, database: Database
    ) -> None:
        for _ in range(12):
            await client.post(NOTES, json=LAMP, headers=keyed())
        await make_older(database, hours=25)

        await client.post(NOTES, json=LAMP, headers=keyed())
        assert await count(database, IdempotencyKey) == 3
        await client.post(NOTES, json=LAMP, headers=keyed())
        assert await count(database, IdempotencyKey) == 2


async def make_older(database: Database, *, hours: int) -> None:
    older = text("UPDATE idempotency_key SET created_at = created_at - make_interval(hours => :h)")
    async with database.transaction() as session:
        await session.execute(older, {"h": hours})


class TestRejection:
    @pytest.mark.parametrize(
        "other",
        [
            {"json": {"text": "Light"}},
            {"json": LAMP, "params": {"loud": "1"}},
            {"content": b'{"text":"Lamp"}', "headers": {"Content-Type": "application/x+json"}},
        ],
        ids=["body", "query", "content-type"],
    )
    async def test_of_a_different_request_with_the_same_key(
        self, client: AsyncClient, database: Database, other: dict[str, Any]
    ) -> None:
        headers = keyed()
        first = await client.post(NOTES, json=LAMP, headers=headers)

        other["headers"] = other.get("headers", {}) | headers
        second = await client.post(NOTES, **other)

        assert first.request.content == b'{"text":"Lamp"}'
        assert_problem(second, 422, "urn:problem-type:idempotency-key-reused")
        assert await count(database) == 1

    @pytest.mark.parametrize(
        "keys",
        [[""], ['""'], ["two words"], ["x" * 256], ["tab\there"], ["one", "two"]],
        ids=["empty", "quotes", "space", "long", "tab", "two keys"],
    )
    async def test_of_an_invalid_key(self, client: AsyncClient, keys: list[str]) -> None:
        headers = [("Idempotency-Key", key) for key in keys]

        assert_problem(await client.post(NOTES, json=LAMP, headers=headers), 400)

    async def test_of_a_body_over_the_limit(self, client: AsyncClient, settings: Settings) -> None:
        text = "x" * settings.MAX_BODY_SIZE

        response = await client.post(NOTES, json={"text": text}, headers=keyed())

        assert_problem(response, 413)


class TestOptOut:
    async def test_key_is_ignored_by_a_route_with_the_dependency(
        self, fresh_app: FastAPI, database: Database
    ) -> None:
        async def chunks() -> AsyncGenerator[str]:
            yield str(uuid4())

        @fresh_app.post(WORK, dependencies=[NoIdempotencyKey])
        async def work() -> StreamingResponse:
            return StreamingResponse(chunks())

        first, second = await post_twice(connect(fresh_app, database), WORK)

        assert first.text != second.text
        assert not is_replay(second)
        assert await count(database, IdempotencyKey) == 0
        operation = fresh_app.openapi()["paths"][WORK]["post"]
        assert "Idempotency-Key" not in [each["name"] for each in operation.get("parameters", [])]
        assert "409" not in operation["responses"]

    async def test_key_is_ignored_by_a_mount(self, fresh_app: FastAPI, database: Database) -> None:
        mounted = FastAPI()
        mounted.post(WORK)(lambda: str(uuid4()))
        fresh_app.mount("/mount", mounted)

        first, second = await post_twice(connect(fresh_app, database), f"/mount{WORK}")

        assert first.status_code == 200
        assert first.text != second.text


class TestCallers:
    @pytest.fixture
    def locked(self, fresh_app: FastAPI, database: Database, settings: Settings) -> AsyncClient:
        """A client that must send one of two API keys."""
        keys = [SecretStr("one"), SecretStr("two")]
        return connect(fresh_app, database, settings.model_copy(update={"API_KEYS": keys}))

    async def test_cannot_share_keys(self, locked: AsyncClient) -> None:
        headers = keyed()
        first = await locked.post(NOTES, json=LAMP, headers={**headers, "X-API-Key": "one"})

        other = await locked.post(NOTES, json=LAMP, headers={**headers, "X-API-Key": "two"})
        without = await locked.post(NOTES, json=LAMP, headers=headers)
        again = await locked.post(NOTES, json=LAMP, headers={**headers, "X-API-Key": "one"})

        assert other.json()["id"] != first.json()["id"]
        assert_problem(without, 401, "urn:problem-type:unauthenticated")
        assert again.json()["id"] == first.json()["id"]
        assert is_replay(again)

    @pytest.mark.parametrize("headers", [{}, {"X-API-Key": "one"}], ids=["developer", "key"])
    async def test_are_principals_and_not_cookies(
        self, client: AsyncClient, locked: AsyncClient, headers: dict[str, str]
    ) -> None:
        headers |= keyed()
        client = locked if "X-API-Key" in headers else client

        first = await client.post(NOTES, json=LAMP, headers={**headers, "Cookie": "theme=dark"})
        again = await client.post(NOTES, json=LAMP, headers={**headers, "Cookie": "theme=light"})

        assert again.json() == first.json()
        assert is_replay(again)

    async def test_remain_after_a_rotation_of_the_key(
        self, locked: AsyncClient, database: Database
    ) -> None:
        headers = keyed()
        async with database.transaction() as session:
            key = await ApiKeyService.create(session, "lamps", "importer", ())
        first = await locked.post(NOTES, json=LAMP, headers={**headers, "X-API-Key": key.text})
        async with database.transaction() as session:
            key = await ApiKeyService.rotate(session, "lamps", "importer")

        again = await locked.post(NOTES, json=LAMP, headers={**headers, "X-API-Key": key.text})

        assert first.status_code == 201
        assert again.json() == first.json()
        assert is_replay(again)

    @pytest.mark.parametrize("header", ["X-API-Key", "Authorization", "Cookie"])
    async def test_of_a_public_endpoint_are_their_credentials(
        self, client: AsyncClient, fresh_app: FastAPI, header: str
    ) -> None:
        fresh_app.post(WORK)(allow_anonymous(lambda: str(uuid4())))
        headers = keyed()

        texts = [
            (await client.post(WORK, headers={**headers, header: value})).text
            for value in ("one", "two", "one")
        ]

        assert texts[0] == texts[2] != texts[1]

    async def test_may_use_rate_limits(
        self, fresh_app: FastAPI, database: Database, settings: Settings
    ) -> None:
        """The look-up for a rate limit finds the same principal as the endpoint's."""
        keys = [SecretStr("one"), SecretStr("two")]
        fresh_app.post(WORK, dependencies=[rate_limit("5/minute")])(lambda: str(uuid4()))
        locked = settings.model_copy(update={"API_KEYS": keys})
        client, headers = connect(fresh_app, database, locked, rate_limits=True), keyed()

        texts = [
            (await client.post(WORK, headers={**headers, "X-API-Key": key})).text
            for key in ("one", "two", "one")
        ]

        assert texts[0] == texts[2] != texts[1]


class Gate:
    """A dependency that rejects callers when it is closed."""

    status: int | None = None

    async def __call__(self) -> None:
        if self.status:
            raise HTTPException(self.status)


async def user(user: Annotated[str, Cookie()]) -> str:
    return user


PLACES = ["application", "include", "router", "route", "parameter"]


def add_work(app: FastAPI, place: str, gate: Any) -> None:
    """Add an endpoint with the dependency."""
    at = {each: [Depends(gate)] if each == place else [] for each in PLACES}
    app.router.dependencies += at["application"]
    router = APIRouter(dependencies=at["router"])

    @router.post(WORK, dependencies=at["route"])
    async def work(db: DbSession, _: Annotated[None, WORK, *at["parameter"]] = None) -> UUID:
        note = Note(**LAMP)
        db.add(note)
        await db.flush()
        return note.id

    app.include_router(router, dependencies=at["include"])


class TestDependencies:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("status", [401, 403, 429])
    async def test_that_reject_the_caller_return_no_stored_response(
        self, fresh_app: FastAPI, database: Database, place: str, status: int
    ) -> None:
        gate, headers = Gate(), keyed()
        add_work(fresh_app, place, gate)
        client = connect(fresh_app, database)
        first = await client.post(WORK, headers=headers)
        gate.status = status

        with recorded(database) as sent:
            second = await client.post(WORK, headers=headers)
            other = await client.post(WORK, headers=keyed())
        gate.status = None

        assert first.status_code == 200
        for each in (second, other):
            assert_problem(each, status)
            assert not is_replay(each)
        assert sent == []
        assert is_replay(await client.post(WORK, headers=headers))

    async def test_that_miss_a_header_return_no_stored_response(
        self, fresh_app: FastAPI, database: Database
    ) -> None:
        async def check(x_token: Annotated[str, Header()]) -> None:
            pass

        add_work(fresh_app, "route", check)
        client, headers = connect(fresh_app, database), keyed()
        one = await client.post(WORK, headers=headers | {"X-Token": "one"})
        other = await client.post(WORK, headers=headers | {"X-Token": "other"})

        assert one.status_code == 200
        assert_problem(other, 422, "urn:problem-type:idempotency-key-reused")
        assert "errors" in (await client.post(WORK, headers=headers)).json()

    async def test_may_change_data(self, fresh_app: FastAPI, database: Database) -> None:
        async def audit(db: DbSession) -> None:
            db.add(Note(text="audit"))

        add_work(fresh_app, "router", audit)

        first, second = await post_twice(connect(fresh_app, database), WORK)

        assert is_replay(second)
        assert second.json() == first.json()
        assert await count(database) == 2

    async def test_separate_the_callers_of_each_scheme(
        self, fresh_app: FastAPI, database: Database
    ) -> None:
        add_work(fresh_app, "include", APIKeyHeader(name="X-Partner"))
        client, headers = connect(fresh_app, database), keyed()

        one = await client.post(WORK, headers=headers | {"X-Partner": "one"})
        other = await client.post(WORK, headers=headers | {"X-Partner": "other"})

        assert one.status_code == other.status_code == 200
        assert one.json() != other.json()
        assert not is_replay(other)

    @pytest.mark.parametrize(
        ("scheme", "header"),
        [(HTTPBasic(), "Authorization"), (APIKeyCookie(name="user"), "Cookie"), (user, "Cookie")],
        ids=["basic", "cookie", "parameter"],
    )
    async def test_separate_the_callers_of_own_credentials(
        self, fresh_app: FastAPI, database: Database, scheme: Any, header: str
    ) -> None:
        add_work(fresh_app, "include", scheme)
        client, headers = connect(fresh_app, database), keyed()
        values = {"Authorization": ["Basic YTph", "Basic Yjpi"], "Cookie": ["user=a", "user=b"]}

        one, other, again = [
            await client.post(WORK, headers=headers | {header: value})
            for value in (*values[header], values[header][0])
        ]

        assert one.status_code == other.status_code == 200
        assert again.json() == one.json() != other.json()


class TestConcurrentRequests:
    async def test_get_409_without_waiting(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        """Otherwise each of them occupies a database connection until the first one ends."""
        started, done = asyncio.Event(), asyncio.Event()

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> UUID:
            note = Note(**LAMP)
            db.add(note)
            await db.flush()
            started.set()
            await done.wait()
            return note.id

        headers = keyed()
        first = asyncio.create_task(client.post(WORK, headers=headers))
        await started.wait()
        repeats = await asyncio.gather(*(client.post(WORK, headers=headers) for _ in range(20)))
        done.set()

        for each in repeats:
            assert_problem(each, 409, "urn:problem-type:idempotency-key-in-use")
            assert each.headers["retry-after"] == "1"
        assert (await first).status_code == 201
        again = await client.post(WORK, headers=headers)
        assert is_replay(again)
        assert again.json() == first.result().json()
        assert await count(database) == 1

    async def test_may_repeat_it_after_the_first_failed(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        started, done = asyncio.Event(), asyncio.Event()

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> None:
            db.add(Note(**LAMP))
            await db.flush()
            if not done.is_set():
                started.set()
                await done.wait()
                raise RuntimeError

        headers = keyed()
        first = asyncio.create_task(client.post(WORK, headers=headers))
        await started.wait()
        second = await client.post(WORK, headers=headers)
        done.set()
        statuses = [(await first).status_code, second.status_code]

        assert statuses == [500, 409]
        assert (await client.post(WORK, headers=headers)).status_code == 201
        assert await count(database) == 1


class TestFailure:
    async def test_of_a_request_stores_no_key(
        self, client: AsyncClient, database: Database
    ) -> None:
        headers = keyed()
        assert (await client.post(NOTES, json={}, headers=headers)).status_code == 422
        assert await count(database, IdempotencyKey) == 0

        response = await client.post(NOTES, json=LAMP, headers=headers)

        assert (response.status_code, is_replay(response)) == (201, False)

    async def test_of_the_process_rolls_back_the_key_and_the_changes(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        """When a process is killed, PostgreSQL sees the end of its connections."""
        working = asyncio.Event()

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> UUID:
            note = Note(**LAMP)
            db.add(note)
            await db.flush()
            if not working.is_set():
                working.set()
                await asyncio.sleep(2 * TIMEOUT_SECONDS)
            return note.id

        headers = keyed()
        killed = asyncio.create_task(client.post(WORK, headers=headers))
        await working.wait()
        await end_other_connections(database)
        response = await asyncio.wait_for(client.post(WORK, headers=headers), TIMEOUT_SECONDS)
        killed.cancel()
        await asyncio.gather(killed, return_exceptions=True)

        assert (response.status_code, is_replay(response)) == (201, False)
        assert is_replay(await client.post(WORK, headers=headers))
        assert await count(database) == 1

    async def test_of_the_commit_is_the_response(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        ran_afterwards: list[str] = []

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession, tasks: BackgroundTasks) -> None:
            tasks.add_task(ran_afterwards.append, WORK)
            await db.execute(text("INSERT INTO deferred VALUES (1), (1)"))

        create = "CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        await execute(database, create)
        response = await client.post(WORK, headers=keyed())
        await execute(database, "DROP TABLE deferred")

        assert_problem(response, 409)
        assert ran_afterwards == []
        assert await count(database, IdempotencyKey) == 0

    @pytest.mark.parametrize("queries_again", [False, True])
    async def test_of_the_connection_returns_503(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database, *, queries_again: bool
    ) -> None:
        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> None:
            db.add(Note(**LAMP))
            await db.flush()
            await end_other_connections(database)
            if queries_again:
                await db.execute(select(1))

        response = await client.post(WORK, headers=keyed())

        assert_problem(response, 503)
        assert await count(database) == 0
        assert await count(database, IdempotencyKey) == 0

    async def test_rolls_back_even_if_an_exception_handler_redirects(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        class LoginNeededError(Exception):
            pass

        @fresh_app.exception_handler(LoginNeededError)
        async def go_to_login(_request: Request, _error: Exception) -> RedirectResponse:
            return RedirectResponse("/login", 303)

        @fresh_app.post(WORK)
        async def work(db: DbSession) -> None:
            db.add(Note(**LAMP))
            await db.flush()
            raise LoginNeededError

        responses = await post_twice(client, WORK)

        assert [response.status_code for response in responses] == [303, 303]
        assert not any(map(is_replay, responses))
        assert await count(database) == 0
        assert await count(database, IdempotencyKey) == 0

    async def test_that_the_endpoint_returns_keeps_its_changes(
        self, client: AsyncClient, fresh_app: FastAPI, database: Database
    ) -> None:
        """As without a key. No response is stored, so the request may run again."""

        @fresh_app.post(WORK)
        async def work(db: DbSession) -> JSONResponse:
            db.add(Note(**LAMP))
            return JSONResponse({"attempts": 1}, 401)

        responses = await post_twice(client, WORK)

        assert [response.status_code for response in responses] == [401, 401]
        assert not any(map(is_replay, responses))
        assert await count(database) == 2
        assert await count(database, IdempotencyKey) == 0


async def test_work_after_the_response_sees_the_commit(
    client: AsyncClient, fresh_app: FastAPI, database: Database
) -> None:
    found = []

    async def look() -> None:
        notes = await count(database)
        found.append((notes, await count(database, IdempotencyKey)))

    @fresh_app.post(WORK, status_code=201)
    async def work(db: DbSession, tasks: BackgroundTasks) -> None:
        db.add(Note(**LAMP))
        tasks.add_task(look)

    assert (await client.post(WORK, headers=keyed())).status_code == 201
    assert found == [(1, 1)]


async def test_a_key_adds_two_statements(client: AsyncClient, database: Database) -> None:
    headers = keyed()
    await client.post(NOTES, json=LAMP, headers=keyed())  # warms up the connection
    with recorded(database) as without:
        await client.post(NOTES, json=LAMP)
    with recorded(database) as first:
        await client.post(NOTES, json=LAMP, headers=headers)
    with recorded(database) as again:
        await client.post(NOTES, json=LAMP, headers=headers)

    assert without == ["BEGIN", "INSERT", "COMMIT"]
    assert first == ["BEGIN", "INSERT", "INSERT", "WITH", "COMMIT"]
    assert again == ["BEGIN", "INSERT", "SELECT", "ROLLBACK"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", f"{API}/health/live", 200), ("POST", "/nowhere", 404), ("POST", "/metrics", 405)],
)
async def test_the_header_is_ignored_for_other_requests(
    client: AsyncClient, database: Database, method: str, path: str, status: int
) -> None:
    with recorded(database) as sent:
        response = await client.request(method, path, headers=keyed("not valid"))

    assert response.status_code == status
    assert sent == []


async def test_openapi_has_the_header_for_each_post(app: FastAPI) -> None:
    """Except for routes with `NoIdempotencyKey`, which the service may have."""
    paths = app.openapi()["paths"]

    for path, operations in paths.items():
        for method, operation in operations.items():
            parameters = [each["name"] for each in operation.get("parameters", [])]
            has_header = "Idempotency-Key" in parameters
            assert has_header == (method == "post") or (path != NOTES and not has_header)


SECRET = re.compile("password|secret|token", re.IGNORECASE)
# Fields with such a name that are no secret: "POST /api/v1/notes/search: page_token".
NO_SECRETS: set[str] = set()


def stored_secrets(app: FastAPI) -> set[str]:
    """Return the fields of stored responses that look like a secret."""
    document = app.openapi()
    return {
        f"POST {path}: {field}"
        for path, operations in document["paths"].items()
        if (operation := operations.get("post"))
        and any(each["name"] == "Idempotency-Key" for each in operation.get("parameters", ()))
        for schema in re.findall(r'/schemas/(\w+)"', json.dumps(operation["responses"]))
        for field in document["components"]["schemas"][schema].get("properties", ())
        if SECRET.search(field)
    }


def test_responses_with_secrets_are_not_stored(fresh_app: FastAPI) -> None:
    """If this fails, add `dependencies=[NoIdempotencyKey]` to the endpoint."""
    assert stored_secrets(fresh_app) <= NO_SECRETS

    class SampleLink(BaseModel):
        access_token: str

    for path, dependencies in (("/stored", []), ("/not-stored", [NoIdempotencyKey])):

        @fresh_app.post(path, dependencies=dependencies)
        async def create_link() -> SampleLink:
            return SampleLink(access_token=str(uuid4()))

    assert stored_secrets(fresh_app) - NO_SECRETS == {"POST /stored: access_token"}


async def test_cors_exposes_the_header_of_a_replayed_response(database: Database) -> None:
    app = create_application(Settings(ENV="test", CORS_ORIGINS=["https://shop.example"]))
    headers = {"Origin": "https://shop.example"}

    response = await connect(app, database).get(f"{API}/health/live", headers=headers)

    assert "Idempotency-Replayed" in response.headers["access-control-expose-headers"]
