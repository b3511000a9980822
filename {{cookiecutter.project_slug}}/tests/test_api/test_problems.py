"""Every error is `application/problem+json` with a request id and nothing internal."""

from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from httpx import AsyncClient, Response

from main import MAX_BODY_BYTES
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES

JSON = {"Content-Type": "application/json"}


def assert_problem(response: Response, status: int) -> None:
    problem = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]


async def test_unknown_path(client: AsyncClient) -> None:
    response = await client.get("/nowhere")

    assert_problem(response, 404)
    assert response.json()["type"] == "about:blank"


async def test_unknown_method(client: AsyncClient) -> None:
    response = await client.put(NOTES)

    assert_problem(response, 405)
    assert response.headers["allow"] == "GET, POST"


async def test_a_domain_error_has_a_type_and_a_message(client: AsyncClient) -> None:
    created = await client.post(NOTES, json={"text": "Lamp"})

    response = await client.patch(created.headers["location"], json={"text": "refused"})

    assert_problem(response, 409)
    problem = response.json()
    assert problem["type"] == "urn:problem-type:note-refused"
    assert (problem["title"], problem["detail"]) == ("Note refused", "This text is refused.")


async def test_an_invalid_request_names_the_fields_but_repeats_nothing(client: AsyncClient) -> None:
    response = await client.post(NOTES, json={"text": ["hunter2"]})

    assert_problem(response, 422)
    assert [fault["location"] for fault in response.json()["errors"]] == ["body.text"]
    assert "hunter2" not in response.text


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, rb'{"text": "\ud800"}'])
async def test_malformed_json(client: AsyncClient, body: bytes) -> None:
    response = await client.post(NOTES, content=body, headers=JSON)

    assert response.status_code in {400, 422}
    assert_problem(response, response.status_code)


async def test_text_that_postgresql_cannot_store(client: AsyncClient) -> None:
    assert_problem(await client.post(NOTES, json={"text": "NUL \x00"}), 422)


async def test_a_body_over_the_limit(client: AsyncClient) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(20):
            yield b" " * (MAX_BODY_BYTES // 10)

    with_length = await client.post(NOTES, json={"text": "x" * MAX_BODY_BYTES})
    without_length = await client.post(NOTES, content=chunks(), headers=JSON)

    assert_problem(with_length, 413)
    assert_problem(without_length, 413)


@pytest.fixture
def faulty_client(fresh_app: FastAPI, database: Database) -> AsyncClient:
    """The service with endpoints that fail."""

    @fresh_app.get("/faulty/bug")
    async def bug() -> None:
        raise RuntimeError("the password is hunter2")

    @fresh_app.get("/faulty/http/{status}")
    async def http(status: int) -> None:
        raise HTTPException(status, {"tea": "none"}, headers={"X-Tea": "none"})

    @fresh_app.get("/faulty/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncGenerator[bytes]:
            yield b"half"
            raise RuntimeError

        return StreamingResponse(chunks())

    return connect(fresh_app, database)


async def test_a_bug_is_500_and_reveals_nothing(faulty_client: AsyncClient) -> None:
    response = await faulty_client.get("/faulty/bug")

    assert_problem(response, 500)
    assert "hunter2" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("status", [418, 499], ids=["standard", "unassigned"])
async def test_an_http_error_keeps_its_status_and_headers(
    faulty_client: AsyncClient, status: int
) -> None:
    response = await faulty_client.get(f"/faulty/http/{status}")

    assert_problem(response, status)
    assert response.headers["x-tea"] == "none"


async def test_an_error_in_a_started_response_breaks_it_off(faulty_client: AsyncClient) -> None:
    with pytest.raises(RuntimeError):
        await faulty_client.get("/faulty/stream")
