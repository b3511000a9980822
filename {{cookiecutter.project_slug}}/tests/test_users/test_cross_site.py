"""Requests with the cookie of a session that come from pages of other sites."""

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.testclient import TestClient
from httpx import AsyncClient
from sqlalchemy import URL

from src.api.auth import CurrentPrincipal
from src.api.sessions import COOKIE
from src.core.config import Settings
from src.db import Database, open_database
from tests.fixtures.client import application, connect
from tests.fixtures.environment import API
from tests.fixtures.users import EMAIL, PASSWORD, add_user, start_session

ME = f"{API}/users/me"
CURRENT = f"{API}/sessions/current"


@pytest.fixture
async def token(database: Database) -> str:
    return await start_session(database, await add_user(database))


def with_cookie(token: str, **headers: str) -> dict[str, str]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"Cookie": f"{COOKIE}={token}", **given}


ALLOWED = [
    {"Sec_Fetch_Site": "same-origin"},
    {"Sec_Fetch_Site": "none"},
    {"Sec_Fetch_Site": "same-origin", "Origin": "http://test"},
    {"Origin": "http://test"},
]
REFUSED = [
    {},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": "http://test"},
    {"Sec_Fetch_Site": ""},
    {"Origin": "null"},
    {"Origin": "https://test"},
    {"Origin": "http://test:8080"},
    {"Origin": "http://test.evil.example"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://evil.example", "X_Forwarded_Host": "evil.example"},
    {"Referer": "http://test/"},
]


@pytest.mark.parametrize("headers", ALLOWED)
async def test_a_page_of_this_service_may_write(
    client: AsyncClient, token: str, headers: dict[str, str]
) -> None:
    response = await client.delete(CURRENT, headers=with_cookie(token, **headers))
    assert response.status_code == 204


@pytest.mark.parametrize("headers", REFUSED)
async def test_another_page_may_not_write(
    client: AsyncClient, token: str, headers: dict[str, str]
) -> None:
    for method in ("DELETE", "POST", "PUT", "PATCH", "delete"):
        path = CURRENT if method.upper() == "DELETE" else f"{API}/sample-notes/"
        response = await client.request(method, path, headers=with_cookie(token, **headers))
        if response.status_code != 405:
            assert response.status_code == 403
            assert response.json()["type"] == "urn:problem-type:cross-site-request"
    assert (await client.get(ME, headers=with_cookie(token, **headers))).status_code == 200


@pytest.mark.parametrize("headers", REFUSED)
async def test_another_page_may_not_log_a_browser_in(
    client: AsyncClient, database: Database, headers: dict[str, str]
) -> None:
    await add_user(database)
    body = {"email": EMAIL, "password": PASSWORD}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await client.post(f"{API}/sessions/", json={**body, "cookie": True}, headers=given)
    assert response.status_code == 403
    assert "Set-Cookie" not in response.headers
    assert (await client.post(f"{API}/sessions/", json=body, headers=given)).status_code == 201


async def test_a_bearer_token_needs_no_origin(client: AsyncClient, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}", "Sec-Fetch-Site": "cross-site"}
    assert (await client.delete(CURRENT, headers=headers)).status_code == 204


@pytest.mark.parametrize(
    ("configured", "origin", "status"),
    [
        ("https://app.example.com", "https://app.example.com", 204),
        ("https://*.example.com", "https://app.example.com", 204),
        ("https://app.example.com", "https://app.example.com.evil.example", 403),
        ("https://*.example.com", "https://evil-example.com", 403),
        ("https://app.example.com", "http://app.example.com", 403),
        ("*", "https://app.example.com", 403),
    ],
)
async def test_pages_of_cors_origins_may_write(
    database: Database, token: str, configured: str, origin: str, status: int
) -> None:
    settings = Settings(_env_file=None, ENV="test", CORS_ORIGINS=configured)
    async with connect(application(settings), database, settings) as client:
        headers = with_cookie(token, Origin=origin, Sec_Fetch_Site="same-site")
        assert (await client.delete(CURRENT, headers=headers)).status_code == status


async def test_with_a_rate_limit_for_all_requests(database: Database, token: str) -> None:
    settings = Settings(_env_file=None, ENV="test", RATE_LIMIT="100/minute")
    async with connect(application(settings), database, settings, rate_limits=True) as client:
        assert (await client.delete(CURRENT, headers=with_cookie(token))).status_code == 403


@pytest.mark.parametrize(
    "name", [b"\x85__Host-session", b"\xa0__Host-session", b"__host-session", b"=__Host-session"]
)
async def test_a_cookie_that_another_subdomain_can_set_is_ignored(
    client: AsyncClient, token: str, name: bytes
) -> None:
    """Browsers do not see the prefix in these names."""
    client.headers["X-API-Key"] = "unknown"  # without credentials, tests have all scopes
    assert (await client.get(ME)).status_code == 401
    del client.headers["X-API-Key"]
    response = await client.get(ME, headers={b"Cookie": name + b"=" + token.encode()})
    assert response.status_code == 403
    assert response.json()["type"] == "urn:problem-type:not-a-user"


async def test_two_cookies_are_refused(client: AsyncClient, token: str) -> None:
    cookie = f"{COOKIE}={token}"
    for headers in ([("Cookie", f"{cookie}; {cookie}")], [("Cookie", cookie)] * 2):
        assert (await client.get(ME, headers=headers)).status_code == 401


async def test_a_web_socket_checks_the_origin(
    fresh_app: FastAPI, sync_client: TestClient, committing_url: URL
) -> None:
    @fresh_app.websocket("/sample-socket")
    async def socket(websocket: WebSocket, principal: CurrentPrincipal) -> None:
        await websocket.accept()
        await websocket.send_text(str(principal))
        await websocket.close()

    async with open_database(committing_url, pool_size=1) as database:
        user = await add_user(database)
        token = await start_session(database, user)
    host = "testserver"
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {}):
        with (
            pytest.raises(WebSocketDisconnect),
            sync_client.websocket_connect("/sample-socket", headers=with_cookie(token) | headers),
        ):
            pytest.fail("the handshake succeeded")
    headers = with_cookie(token, Origin=f"http://{host}")
    with sync_client.websocket_connect("/sample-socket", headers=headers) as connection:
        assert connection.receive_text() == f"user:{user.id}"
