"""Without valid credentials, a body is neither awaited nor parsed."""

import asyncio
from typing import Annotated

import pytest
from fastapi import APIRouter, Body, FastAPI, UploadFile
from httpx import AsyncClient

from src.api.auth import allow_anonymous, authenticate
from src.core.config import Settings
from src.db.session import Database
from tests.fixtures.client import connect, served
from tests.test_api.test_auth import HEADERS, WORK, assert_unauthenticated, locked

__all__ = ["locked"]  # a fixture

JSON = {"Content-Type": "application/json"}
router = APIRouter()


@router.post("/number")
async def read_number(number: Annotated[int, Body()]) -> int:
    return number


@router.post("/file")
async def read_file(file: UploadFile) -> int:
    return len(await file.read())


@pytest.fixture
def client(fresh_app: FastAPI, database: Database, locked: Settings) -> AsyncClient:
    fresh_app.include_router(router)
    return connect(fresh_app, database, locked)


@pytest.fixture(params=[{}, {"Idempotency-Key": "key"}], ids=["plain", "keyed"])
def headers(request: pytest.FixtureRequest) -> dict[str, str]:
    return dict(request.param)


@pytest.mark.parametrize("body", ["{", "[" * 100, " " * 2**20 + "1", ""], ids=len)
@pytest.mark.parametrize("key", [{}, {"X-API-Key": "wrong"}], ids=["no key", "wrong key"])
async def test_json_is_not_parsed(
    client: AsyncClient, headers: dict[str, str], body: str, key: dict[str, str]
) -> None:
    headers |= JSON

    response = await client.post("/number", headers=headers | key, content=body)
    allowed = await client.post("/number", headers=headers | HEADERS, content=body)

    assert_unauthenticated(response)
    assert allowed.status_code in {413, 422}


async def test_file_is_not_stored(client: AsyncClient, headers: dict[str, str]) -> None:
    files = {"file": b"text"}

    assert_unauthenticated(await client.post("/file", headers=headers, files=files))
    assert (await client.post("/file", headers=headers | HEADERS, files=files)).json() == 4


async def test_body_is_not_awaited(
    fresh_app: FastAPI, database: Database, locked: Settings, headers: dict[str, str]
) -> None:
    fresh_app.include_router(router)
    headers |= {"Host": "test", **JSON, "Content-Length": "9"}
    lines = ["POST /number HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers), "", ""]

    async with served(fresh_app, database, locked) as host, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*host.split(":"))
        writer.write("\r\n".join(lines).encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_anonymous_endpoint_has_a_body(fresh_app: FastAPI, client: AsyncClient) -> None:
    @fresh_app.post(WORK)
    @allow_anonymous
    async def work(number: Annotated[int, Body()]) -> int:
        return number

    assert (await client.post(WORK, json=7)).json() == 7


async def test_endpoint_has_a_body_if_a_test_replaces_the_authentication(
    fresh_app: FastAPI, client: AsyncClient
) -> None:
    fresh_app.dependency_overrides = {authenticate: lambda: None}

    assert (await client.post("/number", json=7)).json() == 7
