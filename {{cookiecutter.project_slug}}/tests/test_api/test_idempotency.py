"""`Idempotency-Key`: a POST that comes again gets the first response, and happens once."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import RedirectResponse, StreamingResponse
from httpx import AsyncClient, Response
from pydantic import SecretStr
from sqlalchemy import URL, func, select, text

from main import MAX_BODY_BYTES, create_application
from src.api.deps import DbSession
from src.core.config import Settings
from src.db.models.idempotency import IdempotencyKey
from src.db.models.item import Item
from src.db.session import Database, open_database
from src.services import idempotency
from tests.fixtures.client import connect
from tests.proxy import Proxy
from tests.test_api.test_statements import recorded

ITEMS = "/api/v1/items/"
WORK = "/work"
PATIENCE_SECONDS = 60
LAMP = {"name": "Lamp"}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the first of two may take its time."""
    monkeypatch.setattr(idempotency, "LOCK_TIMEOUT_SECONDS", PATIENCE_SECONDS)


def keyed(key: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": f'"{uuid4()}"' if key is None else key}


async def count(database: Database, model: type[Item | IdempotencyKey] = Item) -> int:
    async with database.reads() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


def is_replay(response: Response) -> bool:
    return "idempotency-replayed" in response.headers


def assert_problem(response: Response, status: int, kind: str = "about:blank") -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == kind
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.fixture
def own(fresh_app: FastAPI, committing_database: Database) -> AsyncClient:
    """A client of the application that a test adds its endpoints to."""
    return connect(fresh_app, committing_database)


class TestReplay:
    async def test_is_the_first_response_byte_for_byte(
        self, committing_client: AsyncClient, committing_database: Database
    ) -> None:
        headers = keyed()

        first = await committing_client.post(ITEMS, json=LAMP, headers=headers)
        second = await committing_client.post(ITEMS, json=LAMP, headers=headers)

        assert (first.status_code, second.status_code) == (201, 201)
        assert second.content == first.content
        assert "idempotency-replayed" not in first.headers
        assert second.headers["idempotency-replayed"] == "true"
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        for each in (first, second):
            each.headers.pop("x-request-id")
            each.headers.pop("idempotency-replayed", None)
        assert second.headers.multi_items() == first.headers.multi_items()
        assert "location" in second.headers
        assert await count(committing_database) == 1

    async def test_another_key_is_another_request(self, client: AsyncClient) -> None:
        first = await client.post(ITEMS, json=LAMP, headers=keyed())
        second = await client.post(ITEMS, json=LAMP, headers=keyed())

        assert first.json()["id"] != second.json()["id"]

    async def test_quotes_make_no_difference(self, client: AsyncClient) -> None:
        first = await client.post(ITEMS, json=LAMP, headers=keyed('"one"'))

        assert (await client.post(ITEMS, json=LAMP, headers=keyed("one"))).json() == first.json()

    async def test_of_an_endpoint_that_takes_no_session(
        self, own: AsyncClient, fresh_app: FastAPI
    ) -> None:
        calls = []

        @fresh_app.post(WORK, status_code=204)
        async def work() -> None:
            calls.append(WORK)

        headers = keyed()
        answers = [await own.post(WORK, headers=headers) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [204, 204]
        assert calls == [WORK]

    async def test_of_a_stream(self, own: AsyncClient, fresh_app: FastAPI) -> None:
        @fresh_app.post(WORK)
        async def work(db: DbSession) -> StreamingResponse:
            async def chunks() -> AsyncGenerator[bytes]:
                for _ in range(3):
                    yield str(await db.scalar(select(func.random()))).encode()

            return StreamingResponse(chunks())

        headers = keyed()
        first, second = [await own.post(WORK, headers=headers) for _ in range(2)]

        assert first.content == second.content != b""

    async def test_of_a_redirection(
        self, own: AsyncClient, fresh_app: FastAPI, committing_database: Database
    ) -> None:
        @fresh_app.post(WORK)
        async def work(db: DbSession) -> RedirectResponse:
            db.add(Item(**LAMP))
            return RedirectResponse(ITEMS, 303)

        headers = keyed()
        answers = [await own.post(WORK, headers=headers) for _ in range(2)]

        assert [(each.status_code, each.headers["location"]) for each in answers] == [
            (303, ITEMS)
        ] * 2
        assert await count(committing_database) == 1

    async def test_counts_as_a_request_to_the_route(self, client: AsyncClient) -> None:
        async def counted() -> float:
            metric = 'http_requests_total{method="POST",route="' + ITEMS + '",status="201"} '
            lines = (await client.get("/metrics")).text.splitlines()
            return sum(float(line.removeprefix(metric)) for line in lines if metric in line)

        headers = keyed()
        before = await counted()
        for _ in range(2):
            await client.post(ITEMS, json=LAMP, headers=headers)

        assert await counted() == before + 2

    async def test_outlives_no_day(
        self, committing_client: AsyncClient, committing_database: Database
    ) -> None:
        headers = keyed()
        first = await committing_client.post(ITEMS, json=LAMP, headers=headers)
        await make_older(committing_database, hours=25)

        second = await committing_client.post(ITEMS, json={"name": "Light"}, headers=headers)
        third = await committing_client.post(ITEMS, json={"name": "Light"}, headers=headers)

        assert second.json()["id"] != first.json()["id"]
        assert third.json() == second.json()

    async def test_lasts_for_nearly_a_day(
        self, committing_client: AsyncClient, committing_database: Database
    ) -> None:
        headers = keyed()
        await committing_client.post(ITEMS, json=LAMP, headers=headers)
        await make_older(committing_database, hours=23)

        assert is_replay(await committing_client.post(ITEMS, json=LAMP, headers=headers))

    async def test_that_expired_is_deleted_bit_by_bit(
        self, committing_client: AsyncClient, committing_database: Database
    ) -> None:
        for _ in range(12):
            await committing_client.post(ITEMS, json=LAMP, headers=keyed())
        await make_older(committing_database, hours=25)

        await committing_client.post(ITEMS, json=LAMP, headers=keyed())
        assert await count(committing_database, IdempotencyKey) == 3
        await committing_client.post(ITEMS, json=LAMP, headers=keyed())
        assert await count(committing_database, IdempotencyKey) == 2


async def make_older(database: Database, *, hours: int) -> None:
    async with database.transaction() as session:
        older = text(
            "UPDATE idempotency_key SET created_at = created_at - make_interval(hours => :h)"
        )
        await session.execute(older, {"h": hours})


class TestRefusal:
    @pytest.mark.parametrize(
        "other",
        [
            {"json": {"name": "Light"}},
            {"json": LAMP, "params": {"loud": "1"}},
            {"content": b'{"name":"Lamp"}', "headers": {"Content-Type": "text/plain"}},
        ],
        ids=["body", "query", "content-type"],
    )
    async def test_of_another_request_with_the_key(
        self, committing_client: AsyncClient, committing_database: Database, other: dict[str, Any]
    ) -> None:
        headers = keyed()
        first = await committing_client.post(ITEMS, json=LAMP, headers=headers)

        other["headers"] = other.get("headers", {}) | headers
        second = await committing_client.post(ITEMS, **other)

        assert first.request.content == b'{"name":"Lamp"}'
        assert_problem(second, 422, "urn:problem-type:idempotency-key-reused")
        assert await count(committing_database) == 1

    @pytest.mark.parametrize("key", ["", '""', "two words", "x" * 256, "tab\there"])
    async def test_of_what_is_no_key(self, client: AsyncClient, key: str) -> None:
        assert_problem(await client.post(ITEMS, json=LAMP, headers=keyed(key)), 400)

    async def test_of_two_keys(self, client: AsyncClient) -> None:
        both = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]

        assert_problem(await client.post(ITEMS, json=LAMP, headers=both), 400)

    async def test_of_nothing_that_has_255_characters(self, client: AsyncClient) -> None:
        assert (await client.post(ITEMS, json=LAMP, headers=keyed("x" * 255))).status_code == 201

    async def test_of_a_body_that_is_too_long(self, client: AsyncClient) -> None:
        response = await client.post(ITEMS, json={"name": "x" * MAX_BODY_BYTES}, headers=keyed())

        assert_problem(response, 413)

    async def test_while_the_database_is_away(self, app: FastAPI, committing_url: URL) -> None:
        proxy = Proxy(committing_url)
        await proxy.start()
        await proxy.stop()
        async with open_database(proxy.url, pool_size=1) as database:
            response = await connect(app, database).post(ITEMS, json=LAMP, headers=keyed())

        assert_problem(response, 503)
        assert response.headers["retry-after"] == "1"


class TestCallers:
    @pytest.mark.parametrize("header", ["X-API-Key", "Authorization", "Cookie"])
    async def test_have_keys_of_their_own(self, client: AsyncClient, header: str) -> None:
        headers = keyed()
        first = await client.post(ITEMS, json=LAMP, headers={**headers, header: "one"})

        other = await client.post(ITEMS, json=LAMP, headers={**headers, header: "two"})
        again = await client.post(ITEMS, json=LAMP, headers={**headers, header: "one"})

        assert other.json()["id"] != first.json()["id"]
        assert again.json()["id"] == first.json()["id"]

    async def test_that_may_not_write_leave_nothing(
        self, app: FastAPI, committing_database: Database
    ) -> None:
        locked = Settings(ENV="test", API_KEYS=[SecretStr("a-key")])

        response = await connect(app, committing_database, locked).post(
            ITEMS, json=LAMP, headers=keyed()
        )

        assert response.status_code == 401
        assert await count(committing_database, IdempotencyKey) == 0


class TestTwins:
    async def test_run_once_and_both_hear_of_it(
        self, committing_client: AsyncClient, committing_database: Database
    ) -> None:
        headers = keyed()

        answers = await asyncio.gather(
            *(committing_client.post(ITEMS, json=LAMP, headers=headers) for _ in range(6))
        )

        assert [answer.status_code for answer in answers] == [201] * 6
        assert len({answer.content for answer in answers}) == 1
        assert sorted(map(is_replay, answers)) == [False] + [True] * 5
        assert await count(committing_database) == 1

    async def test_run_twice_if_the_first_fails(
        self, own: AsyncClient, fresh_app: FastAPI, committing_database: Database
    ) -> None:
        second_waits = asyncio.Event()
        calls = []

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> None:
            db.add(Item(**LAMP))
            await db.flush()
            calls.append(WORK)
            if len(calls) == 1:
                await second_waits.wait()
                raise RuntimeError

        headers = keyed()
        twins = [asyncio.create_task(own.post(WORK, headers=headers)) for _ in range(2)]
        await until_somebody_waits(committing_database)
        second_waits.set()

        answers = await asyncio.gather(*twins)

        assert sorted(answer.status_code for answer in answers) == [201, 500]
        assert len(calls) == 2
        assert await count(committing_database) == 1

    async def test_do_not_wait_for_each_other_for_ever(
        self,
        own: AsyncClient,
        fresh_app: FastAPI,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(idempotency, "LOCK_TIMEOUT_SECONDS", 0.05)
        done = asyncio.Event()
        limits = []

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> None:
            limits.append(await db.scalar(text("SHOW lock_timeout")))
            await done.wait()

        headers = keyed()
        first = asyncio.create_task(own.post(WORK, headers=headers))
        while not limits:  # noqa: ASYNC110 - the request is on its way
            await asyncio.sleep(0.01)
        second = await own.post(WORK, headers=headers)
        done.set()

        assert_problem(second, 409, "urn:problem-type:idempotency-key-in-use")
        assert second.headers["retry-after"] == "1"
        assert (await first).status_code == 201
        assert is_replay(await own.post(WORK, headers=headers))
        assert limits == ["0"]  # the work itself may wait for as long as it would without a key


async def until_somebody_waits(database: Database) -> None:
    waiting = text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    async with database.reads() as session, asyncio.timeout(PATIENCE_SECONDS):
        while not await session.scalar(waiting):  # noqa: ASYNC110 - PostgreSQL holds it
            await asyncio.sleep(0.01)


class TestFailure:
    async def test_of_a_request_leaves_the_key_free(self, client: AsyncClient) -> None:
        headers = keyed()
        assert (await client.post(ITEMS, json={}, headers=headers)).status_code == 422

        response = await client.post(ITEMS, json=LAMP, headers=headers)

        assert (response.status_code, is_replay(response)) == (201, False)

    async def test_of_the_process_takes_the_key_with_the_work(
        self, own: AsyncClient, fresh_app: FastAPI, committing_database: Database
    ) -> None:
        """PostgreSQL sees the same of a process that was killed: a connection that ends."""
        working = asyncio.Event()

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> UUID:
            item = Item(**LAMP)
            db.add(item)
            await db.flush()
            if not working.is_set():
                working.set()
                await asyncio.sleep(2 * PATIENCE_SECONDS)
            return item.id

        headers = keyed()
        killed = asyncio.create_task(own.post(WORK, headers=headers))
        await working.wait()
        await end_other_connections(committing_database)
        response = await asyncio.wait_for(own.post(WORK, headers=headers), PATIENCE_SECONDS)
        killed.cancel()
        await asyncio.gather(killed, return_exceptions=True)

        assert (response.status_code, is_replay(response)) == (201, False)
        assert is_replay(await own.post(WORK, headers=headers))
        assert await count(committing_database) == 1

    async def test_of_the_commit_is_no_success(
        self, own: AsyncClient, fresh_app: FastAPI, committing_database: Database
    ) -> None:
        ran_behind: list[str] = []

        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession, tasks: BackgroundTasks) -> None:
            tasks.add_task(ran_behind.append, WORK)
            await db.execute(text("INSERT INTO deferred VALUES (1), (1)"))

        await execute(
            committing_database,
            "CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        )
        response = await own.post(WORK, headers=keyed())
        await execute(committing_database, "DROP TABLE deferred")

        assert_problem(response, 500)
        assert ran_behind == []
        assert await count(committing_database, IdempotencyKey) == 0

    @pytest.mark.parametrize("notices", [False, True])
    async def test_of_the_connection_is_503(
        self, own: AsyncClient, fresh_app: FastAPI, committing_database: Database, *, notices: bool
    ) -> None:
        @fresh_app.post(WORK, status_code=201)
        async def work(db: DbSession) -> None:
            db.add(Item(**LAMP))
            await db.flush()
            await end_other_connections(committing_database)
            if notices:
                await db.execute(select(1))

        response = await own.post(WORK, headers=keyed())

        assert_problem(response, 503)
        assert (
            await count(committing_database)
            == await count(committing_database, IdempotencyKey)
            == 0
        )

    async def test_rolls_back_whatever_a_handler_answers(
        self, own: AsyncClient, fresh_app: FastAPI, committing_database: Database
    ) -> None:
        class LoginNeededError(Exception):
            pass

        @fresh_app.exception_handler(LoginNeededError)
        async def go_to_login(_request: Request, _error: Exception) -> RedirectResponse:
            return RedirectResponse("/login", 303)

        @fresh_app.post(WORK)
        async def work(db: DbSession) -> None:
            db.add(Item(**LAMP))
            await db.flush()
            raise LoginNeededError

        headers = keyed()
        answers = [await own.post(WORK, headers=headers) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [303, 303]
        assert not any(map(is_replay, answers))
        assert (
            await count(committing_database)
            == await count(committing_database, IdempotencyKey)
            == 0
        )


async def execute(database: Database, statement: str) -> None:
    async with database.transaction() as session:
        await session.execute(text(statement))


async def end_other_connections(database: Database) -> None:
    await execute(
        database,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


async def test_tasks_behind_the_response_find_the_work_committed(
    own: AsyncClient, fresh_app: FastAPI, committing_database: Database
) -> None:
    found = []

    async def look() -> None:
        found.append(
            (await count(committing_database), await count(committing_database, IdempotencyKey))
        )

    @fresh_app.post(WORK, status_code=201)
    async def work(db: DbSession, tasks: BackgroundTasks) -> None:
        db.add(Item(**LAMP))
        tasks.add_task(look)

    assert (await own.post(WORK, headers=keyed())).status_code == 201
    assert found == [(1, 1)]


async def test_what_was_done_is_read_at_once(committing_client: AsyncClient) -> None:
    """Also where an answer was kept that lacked it."""
    for _ in range(2):
        assert (await committing_client.get(ITEMS)).json()["items"] == []

    created = await committing_client.post(ITEMS, json=LAMP, headers=keyed())

    assert (await committing_client.get(ITEMS)).json()["items"] == [created.json()]


async def test_a_key_costs_four_statements_and_none_costs_nothing(
    committing_client: AsyncClient, committing_database: Database
) -> None:
    headers = keyed()
    await committing_client.post(ITEMS, json=LAMP, headers=keyed())  # warms up the connection
    with recorded(committing_database) as without:
        await committing_client.post(ITEMS, json=LAMP)
    with recorded(committing_database) as first:
        await committing_client.post(ITEMS, json=LAMP, headers=headers)
    with recorded(committing_database) as again:
        await committing_client.post(ITEMS, json=LAMP, headers=headers)

    assert without == ["BEGIN", "INSERT", "COMMIT"]
    assert first == ["BEGIN", "SET", "INSERT", "SET", "INSERT", "WITH", "COMMIT"]
    assert again == ["BEGIN", "SET", "INSERT", "SELECT", "COMMIT"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/v1/health/live", 200), ("POST", "/nowhere", 404), ("POST", "/metrics", 405)],
)
async def test_whatever_happens_in_no_post_is_left_alone(
    committing_client: AsyncClient,
    committing_database: Database,
    method: str,
    path: str,
    status: int,
) -> None:
    """Also if the key is none."""
    with recorded(committing_database) as sent:
        response = await committing_client.request(method, path, headers=keyed("no key"))

    assert response.status_code == status
    assert sent == []


async def test_the_document_offers_the_header_for_each_post(client: AsyncClient) -> None:
    paths = (await client.get("/api/openapi.json")).json()["paths"]
    operations = [(method, each) for path in paths.values() for method, each in path.items()]

    for method, operation in operations:
        offered = [each["name"] for each in operation.get("parameters", [])]
        assert ("Idempotency-Key" in offered) == (method == "post")
        if method == "post":
            assert {"400", "409", "413", "422", "503"} <= operation["responses"].keys()
    assert "post" in dict(operations)


async def test_browsers_may_see_what_is_a_replay(database: Database) -> None:
    app = create_application(Settings(ENV="test", CORS_ORIGINS=["https://shop.example"]))
    headers = {"Origin": "https://shop.example"}

    response = await connect(app, database).get("/api/v1/health/live", headers=headers)

    assert "Idempotency-Replayed" in response.headers["access-control-expose-headers"]
