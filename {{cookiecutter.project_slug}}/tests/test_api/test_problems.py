"""Error responses."""

from collections.abc import AsyncGenerator
from datetime import date
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from httpx import AsyncClient, Response

from src.core.config import Settings
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


async def test_unknown_path_or_method(client: AsyncClient) -> None:
    path, method = await client.get("/nowhere"), await client.put(NOTES)

    assert_problem(path, 404)
    assert path.json()["type"] == "about:blank"
    assert_problem(method, 405)
    assert method.headers["allow"] == "GET, HEAD, POST"


async def test_a_domain_error_has_a_type_and_a_message(client: AsyncClient) -> None:
    created = await client.post(NOTES, json={"text": "Lamp"})

    response = await client.patch(created.headers["location"], json={"text": "refused"})

    assert_problem(response, 409)
    problem = response.json()
    assert problem["type"] == "urn:problem-type:note-refused"
    assert (problem["title"], problem["detail"]) == ("Note refused", "This text is refused.")


async def test_an_invalid_request_names_the_fields_but_not_their_values(
    client: AsyncClient,
) -> None:
    response = await client.post(NOTES, json={"text": ["hunter2"]})

    assert_problem(response, 422)
    assert [fault["location"] for fault in response.json()["errors"]] == ["body.text"]
    assert "hunter2" not in response.text


async def test_the_number_of_listed_errors_is_limited(
    fresh_app: FastAPI, database: Database
) -> None:
    @fresh_app.post("/numbers")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with connect(fresh_app, database) as client:
        response = await client.post("/numbers", json=["x"] * 1000)

    assert_problem(response, 422)
    assert len(response.json()["errors"]) == 100


UNFIT = [b"{", b"\xff", rb'{"text": "\ud800"}', rb'{"text": "\u0000"}']


@pytest.mark.parametrize("body", UNFIT, ids=["json", "utf-8", "surrogate", "NUL"])
async def test_malformed_json_or_text_that_postgresql_cannot_store(
    client: AsyncClient, body: bytes
) -> None:
    response = await client.post(NOTES, content=body, headers=JSON)

    assert response.status_code in {400, 422}
    assert_problem(response, response.status_code)


async def test_a_body_over_the_limit(client: AsyncClient, settings: Settings) -> None:
    limit = settings.MAX_BODY_SIZE

    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(20):
            yield b" " * (limit // 10)

    with_length = await client.post(NOTES, json={"text": "x" * limit})
    without_length = await client.post(NOTES, content=chunks(), headers=JSON)

    assert_problem(with_length, 413)
    assert_problem(without_length, 413)


async def test_an_unexpected_error_returns_500_and_reveals_nothing(
    fresh_app: FastAPI, database: Database
) -> None:
    @fresh_app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("the password is hunter2")

    response = await connect(fresh_app, database).get("/bug")

    assert_problem(response, 500)
    assert "hunter2" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("status", [418, 499], ids=["standard", "unassigned"])
@pytest.mark.parametrize(
    ("detail", "members"),
    [
        ("No tea", {"detail": "No tea"}),
        (
            {"code": "empty", "cups": [1, None], "when": date(2026, 1, 2)},
            {"code": "empty", "cups": [1, None], "when": "2026-01-02"},
        ),
        (
            {"type": "urn:tea", "title": "Tea", "detail": "None", "status": "x", "instance": 1},
            {"type": "urn:tea", "title": "Tea", "detail": "None", "status_": "x", "instance_": 1},
        ),
        ({"detail": ["a"], 1: float("nan")}, {"detail_": ["a"], "1": None}),
        ({"error": ValueError("no cup")}, {"error": "no cup"}),
        (["milk", {"sugar": 2}], {"details": ["milk", {"sugar": 2}]}),
        (ValueError("no cup"), {"detail": "no cup"}),
    ],
    ids=["text", "mapping", "reserved", "types", "exception", "list", "error"],
)
async def test_an_http_error_keeps_its_status_headers_and_detail(
    fresh_app: FastAPI, database: Database, status: int, detail: Any, members: dict[str, Any]
) -> None:
    @fresh_app.get("/http")
    async def http() -> None:
        raise HTTPException(status, detail, headers={"X-Tea": "none"})

    response = await connect(fresh_app, database).get("/http")

    assert_problem(response, status)
    assert response.headers["x-tea"] == "none"
    expected = {"type": "about:blank", **members}
    problem = response.json()
    for name in ("status", "instance", "request_id", *({"title"} - members.keys())):
        del problem[name]
    assert problem == expected


async def test_an_http_error_without_a_body(fresh_app: FastAPI, database: Database) -> None:
    @fresh_app.get("/http")
    async def http() -> None:
        raise HTTPException(304, headers={"ETag": '"1"'})

    response = await connect(fresh_app, database).get("/http")

    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"] == '"1"'


async def test_an_error_in_a_started_response_aborts_it(
    fresh_app: FastAPI, database: Database
) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        yield b"half"
        raise RuntimeError

    @fresh_app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(chunks())

    with pytest.raises(RuntimeError):
        await connect(fresh_app, database).get("/stream")
