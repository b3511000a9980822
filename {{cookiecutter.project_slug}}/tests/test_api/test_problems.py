"""Every error is `application/problem+json` with a request id and nothing internal."""

from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from httpx import AsyncClient, Response
from sqlalchemy import select

from main import MAX_BODY_BYTES
from src.api.deps import ReadSession
from src.db.models.item import Item
from src.db.session import Database
from tests.fixtures.client import connect


def assert_problem(response: Response, status: int) -> None:
    problem = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]


async def test_no_such_path(client: AsyncClient) -> None:
    response = await client.get("/nowhere")

    assert_problem(response, 404)
    assert response.json()["type"] == "about:blank"


async def test_no_such_method(client: AsyncClient) -> None:
    response = await client.put("/api/v1/items/")

    assert_problem(response, 405)
    assert response.headers["allow"] == "GET, POST"


async def test_invalid_request_says_where_but_repeats_nothing(client: AsyncClient) -> None:
    response = await client.post("/api/v1/items/", json={"name": 5, "password": "hunter2"})

    assert_problem(response, 422)
    assert {fault["location"] for fault in response.json()["errors"]} == {
        "body.name",
        "body.password",
    }
    assert "hunter2" not in response.text


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
async def test_not_json(client: AsyncClient, body: bytes) -> None:
    response = await client.post(
        "/api/v1/items/", content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code in {400, 422}
    assert_problem(response, response.status_code)


async def test_too_long(client: AsyncClient) -> None:
    response = await client.post("/api/v1/items/", json={"name": "x" * MAX_BODY_BYTES})

    assert_problem(response, 413)


async def test_too_long_without_saying_so_first(client: AsyncClient) -> None:
    async def body() -> AsyncGenerator[bytes]:
        for _ in range(20):
            yield b" " * (MAX_BODY_BYTES // 10)

    response = await client.post(
        "/api/v1/items/", content=body(), headers={"Content-Type": "application/json"}
    )

    assert_problem(response, 413)


@pytest.fixture
def faulty(fresh_app: FastAPI, database: Database) -> AsyncClient:
    """The service with endpoints that fail in ways of their own."""

    @fresh_app.get("/faulty/bug")
    async def bug() -> None:
        raise RuntimeError("the password is hunter2")

    @fresh_app.get("/faulty/nul")
    async def nul(db: ReadSession) -> None:
        await db.execute(select(Item.id).where(Item.name == "\x00"))

    @fresh_app.get("/faulty/teapot")
    async def teapot() -> None:
        raise HTTPException(418, {"tea": "none"}, headers={"X-Tea": "none"})

    @fresh_app.get("/faulty/unheard-of")
    async def unheard_of() -> None:
        raise HTTPException(499)

    @fresh_app.get("/faulty/half-way")
    async def half_way() -> StreamingResponse:
        async def chunks() -> AsyncGenerator[bytes]:
            yield b"half"
            raise RuntimeError

        return StreamingResponse(chunks())

    return connect(fresh_app, database)


async def test_text_that_no_schema_refused_is_the_caller_s_fault(faulty: AsyncClient) -> None:
    assert_problem(await faulty.get("/faulty/nul"), 422)


async def test_a_bug_is_500_and_tells_nothing(faulty: AsyncClient) -> None:
    response = await faulty.get("/faulty/bug")

    assert_problem(response, 500)
    assert "hunter2" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_any_http_error_of_the_code_keeps_its_headers(faulty: AsyncClient) -> None:
    response = await faulty.get("/faulty/teapot")

    assert_problem(response, 418)
    assert response.headers["x-tea"] == "none"


async def test_a_status_without_a_name_is_passed_on(faulty: AsyncClient) -> None:
    assert_problem(await faulty.get("/faulty/unheard-of"), 499)


async def test_an_answer_that_has_begun_is_broken_off(faulty: AsyncClient) -> None:
    with pytest.raises(RuntimeError):
        await faulty.get("/faulty/half-way")
