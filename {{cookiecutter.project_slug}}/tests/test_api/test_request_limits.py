"""Requests whose size or host could harm other requests or other callers."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from httpx import AsyncClient

from src.api.body_limit import MAX_JSON_DEPTH, MAX_QUERY_PARAMETERS
from src.core.exceptions import MAX_ERROR_LENGTH
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES

MEMBERS = 16_384  # of a body with the default limit, 1 MiB
DEEP = MAX_JSON_DEPTH + 1
TEXT = '[{,"\\' * 20_000  # punctuation in a text is no structure


@pytest.fixture
def client(fresh_app: FastAPI, database: Database) -> AsyncClient:
    @fresh_app.post("/echo")
    async def echo(value: dict[str, Any] | list[Any]) -> Any:
        return value

    @fresh_app.post("/numbers")
    async def numbers(value: dict[str, int]) -> int:
        return len(value)

    @fresh_app.get("/old/{path:path}")
    async def old(request: Request, path: str) -> RedirectResponse:
        return RedirectResponse(request.url.replace(path=f"/{path}"))

    return connect(fresh_app, database)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({f"k{number}": 0 for number in range(60_000)}),
        json.dumps([0] * (MEMBERS + 1)),
        "[" + "{}," * MEMBERS + "{}]",
        nested(DEEP),
        nested(100_000),
        '{"a":' * DEEP + "0" + "}" * DEEP,
        "[{" * DEEP,
        f'["\\"", "\\\\", {nested(DEEP)}]',
    ],
    ids=["members", "elements", "objects", "deep", "deeper", "deep objects", "mixed", "quotes"],
)
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "key"}], ids=["plain", "keyed"])
async def test_large_structures_are_rejected(
    client: AsyncClient, body: str, key: dict[str, str]
) -> None:
    headers = {"Content-Type": "application/json", **key}

    response = await client.post(NOTES, content=body, headers=headers)

    assert response.status_code == 413
    assert response.headers["content-type"] == "application/problem+json"
    assert "levels" in response.json()["detail"]


@pytest.mark.parametrize(
    "value",
    [
        {"text": TEXT},
        {f"{TEXT} {number}": [] for number in range(4)},
        json.loads(nested(MAX_JSON_DEPTH)),
        [0] * (MEMBERS - 1),
        [{"a": [1]}] * 1000,
        {str(number): "" for number in range(MEMBERS)},
    ],
    ids=["text", "keys", "depth", "elements", "objects", "members"],
)
async def test_other_structures_are_accepted(client: AsyncClient, value: Any) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        body = json.dumps(value).encode()
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    assert (await client.post("/echo", json=value)).json() == value
    chunked = await client.post(
        "/echo", content=chunks(), headers={"Content-Type": "application/json"}
    )
    assert chunked.json() == value


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (rb'{"a": "\ud83d"}', 422),
        (rb'{"\uDE00": 1}', 422),
        (rb'{"a": "\\\ud83d\\\ude00"}', 422),
        (rb'{"a": "\ude00\ud83d"}', 422),
        (b'{"a": "\xed\xa0\x80"}', 422),
        ('{"a": "b"}'.encode("utf-16"), 400),
        (rb'{"a": "\ud83d\uDE00 \\ud83d"}', 200),
        ('{"a": "\ud7ff 한"}'.encode(), 200),
    ],
)
async def test_unpaired_surrogates_are_rejected(
    client: AsyncClient, body: bytes, status: int
) -> None:
    response = await client.post(
        "/echo", content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code == status
    if status == 200:
        assert response.json() == json.loads(body)


@pytest.mark.parametrize(("count", "status"), [(MAX_QUERY_PARAMETERS, 200), (16_000, 414)])
async def test_query_parameters_are_limited(client: AsyncClient, count: int, status: int) -> None:
    response = await client.get(f"{NOTES}?{'&'.join(['a'] * count)}")

    assert response.status_code == status


async def test_an_error_does_not_repeat_a_long_name(client: AsyncClient) -> None:
    response = await client.post("/numbers", json={"k" * 100_000: "x"})

    assert response.status_code == 422
    assert len(response.json()["errors"][0]["location"]) == MAX_ERROR_LENGTH


@pytest.mark.parametrize("host", ["evil.example", "evil.example:81", "[::1]:81", "<evil>", ""])
@pytest.mark.parametrize(
    ("path", "location"),
    [
        (NOTES.rstrip("/"), NOTES),
        ("/old/a?b=http://test", "/a?b=http://test"),
        ("/old//evil.example/a", "/evil.example/a"),
    ],
)
async def test_redirects_do_not_contain_the_host(
    client: AsyncClient, host: str, path: str, location: str
) -> None:
    headers = {"Host": host, "X-Forwarded-Host": "evil.example"}

    response = await client.get(path, headers=headers, follow_redirects=False)

    assert response.headers["location"] == location
