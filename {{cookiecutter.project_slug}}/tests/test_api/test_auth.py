"""Each endpoint needs valid credentials, unless it allows anonymous callers."""

from typing import Any, Literal

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.routing import iter_route_contexts
from httpx import AsyncClient, Response
from pydantic import SecretStr
from websockets.asyncio.client import connect as connect_socket

from main import create_application
from src.api.auth import (
    OptionalPrincipal,
    allow_anonymous,
    allows_anonymous,
    authenticate,
    walk,
)
from src.core.config import Settings
from src.core.trace import principal_id
from src.db.session import Database
from tests.fixtures.client import connect, served
from tests.fixtures.environment import API
from tests.test_api.test_idempotency import assert_problem

# The routes that need no credentials. Add your endpoints with `@allow_anonymous`, and the paths of
# what you mount.
ANONYMOUS = {
    f"GET {API}/app-info",
    f"GET {API}/health/live",
    f"GET {API}/health/ready",
    "GET /metrics",
    # % if cookiecutter.__users
    f"POST {API}/sessions/",
    f"POST {API}/users/",
    f"POST {API}/users/change-email",
    f"POST {API}/users/forgot-password",
    f"POST {API}/users/reset-password",
    f"POST {API}/users/verify-email",
    # % endif
}
KEY = "8f14e45fceea167a5a36dedd4bea2543"
HEADERS = {"X-API-Key": KEY}
WORK = "/work"


def needs_credentials(route: Any) -> bool:
    calls = [each.call for each in walk(route.dependant)] if hasattr(route, "dependant") else []
    return authenticate in calls and not allows_anonymous(route.endpoint)


def test_anonymous_routes_are_listed(settings: Settings) -> None:
    app = create_application(settings)
    documentation = tuple(filter(None, (app.docs_url, app.redoc_url, app.openapi_url)))
    found = {
        f"{' '.join(sorted(getattr(route, 'methods', None) or ()))} {route.path}".strip()
        for route in iter_route_contexts(app.routes)
        if not needs_credentials(route) and not str(route.path).startswith(documentation)
    }

    assert found <= ANONYMOUS


@pytest.fixture
def locked(settings: Settings) -> Settings:
    return settings.model_copy(update={"API_KEYS": [SecretStr("other"), SecretStr(KEY)]})


@pytest.fixture
def client(fresh_app: FastAPI, database: Database, locked: Settings) -> AsyncClient:
    return connect(fresh_app, database, locked)


def assert_unauthenticated(response: Response) -> None:
    assert_problem(response, 401, "urn:problem-type:unauthenticated")
    assert response.headers["www-authenticate"]


async def test_repeated_header_is_invalid(client: AsyncClient, fresh_app: FastAPI) -> None:
    fresh_app.get(WORK)(lambda: "done")

    assert_unauthenticated(await client.get(WORK, headers=[*HEADERS.items(), *HEADERS.items()]))


class TestAnonymous:
    @pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, HEADERS])
    async def test_endpoint_does_not_look_at_credentials(
        self, fresh_app: FastAPI, client: AsyncClient, headers: dict[str, str]
    ) -> None:
        @fresh_app.get(WORK)
        @allow_anonymous
        async def work() -> str | None:
            return principal_id.get()

        response = await client.get(WORK, headers=headers)

        assert (response.status_code, response.json()) == (200, None)
        assert "security" not in fresh_app.openapi()["paths"][WORK]["get"]

    async def test_endpoint_may_take_the_principal_of_valid_credentials(
        self, fresh_app: FastAPI, client: AsyncClient
    ) -> None:
        @fresh_app.get(WORK)
        @allow_anonymous
        async def work(principal: OptionalPrincipal) -> str | None:
            return str(principal) if principal else None

        assert (await client.get(WORK)).json() is None
        assert (await client.get(WORK, headers=HEADERS)).json().startswith("api-key:")
        assert_unauthenticated(await client.get(WORK, headers={"X-API-Key": "wrong"}))

    @pytest.mark.parametrize("env", ["staging", "production"])
    async def test_caller_is_never_the_developer_of_a_deployed_service(
        self,
        fresh_app: FastAPI,
        database: Database,
        settings: Settings,
        env: Literal["staging", "production"],
    ) -> None:
        fresh_app.get(WORK)(lambda: "done")
        deployed = settings.model_copy(update={"ENV": env, "API_KEYS": []})

        assert_unauthenticated(await connect(fresh_app, database, deployed).get(WORK))
        assert (await connect(fresh_app, database).get(WORK)).status_code == 200

    async def test_method_does_not_open_the_others_of_its_path(
        self, fresh_app: FastAPI, client: AsyncClient
    ) -> None:
        fresh_app.get(WORK)(allow_anonymous(lambda: "read"))
        fresh_app.post(WORK)(lambda: "written")

        assert (await client.head(WORK)).status_code == 200
        assert_unauthenticated(await client.post(WORK))
        assert (await client.post(WORK, headers=HEADERS)).status_code == 200
        assert (await client.delete(WORK, headers=HEADERS)).status_code == 405


async def test_websocket_may_allow_anonymous_callers(
    fresh_app: FastAPI, database: Database, locked: Settings
) -> None:
    @fresh_app.websocket("/socket")
    @allow_anonymous
    async def socket(websocket: WebSocket, principal: OptionalPrincipal) -> None:
        await websocket.accept()
        await websocket.send_text(str(principal))

    async with (
        served(fresh_app, database, locked) as host,
        connect_socket(f"ws://{host}/socket") as opened,
    ):
        assert await opened.recv() == "None"
