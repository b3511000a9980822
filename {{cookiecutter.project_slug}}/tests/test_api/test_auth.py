"""Each endpoint needs valid credentials and its scopes, unless it allows anonymous callers."""

from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.routing import iter_route_contexts
from httpx import AsyncClient, Response
from pydantic import SecretStr
from starlette.types import Message
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import InvalidStatus

from main import create_application
from src.api.auth import (
    CurrentPrincipal,
    OptionalPrincipal,
    allow_anonymous,
    allows_anonymous,
    authenticate,
    check_routes,
    get_principal,
    require,
    walk,
)
from src.core.config import Settings
from src.core.trace import principal_id
from src.db.session import Database
from src.domain.principal import Principal, Scope
from tests.fixtures.client import ClientWith, connect, create_key, served
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES
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
    # % endif
}
SOME_SCOPE = next(iter(Scope))
KEY = "8f14e45fceea167a5a36dedd4bea2543"
HEADERS = {"X-API-Key": KEY}
WORK = "/work"
PLACES = ["application", "include", "router", "route"]


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


class TestScopes:
    @pytest.mark.parametrize("place", PLACES)
    async def test_are_required_wherever_they_are_declared(
        self, fresh_app: FastAPI, database: Database, place: str
    ) -> None:
        at = {each: [require(SOME_SCOPE)] if each == place else [] for each in PLACES}
        router = APIRouter(dependencies=at["router"])
        router.get(WORK, dependencies=at["route"])(lambda: "done")
        fresh_app.router.dependencies += at["application"]
        fresh_app.include_router(router, dependencies=at["include"])
        client = connect(fresh_app, database)

        for scopes, status in (((SOME_SCOPE,), 200), (Scope, 200), ((), 403)):
            key = await create_key(database, *scopes)
            response = await client.get(WORK, headers={"X-API-Key": key})
            assert response.status_code == status
        assert_problem(response, 403, "urn:problem-type:missing-scope")
        assert f'scope="{SOME_SCOPE}"' in response.headers["www-authenticate"]
        operation = fresh_app.openapi()["paths"][WORK]["get"]
        assert {"API key": [SOME_SCOPE]} in operation["security"]
        assert "403" in operation["responses"]

    async def test_all_are_required(self, fresh_app: FastAPI, database: Database) -> None:
        scopes = sorted(Scope)
        fresh_app.get(WORK, dependencies=[require(*scopes)])(lambda: "done")
        client = connect(fresh_app, database)

        for number in range(len(scopes)):
            few = scopes[:number] + scopes[number + 1 :]
            key = await create_key(database, *few)
            assert (await client.get(WORK, headers={"X-API-Key": key})).status_code == 403

    async def test_client_with_scopes(self, client_with: ClientWith) -> None:
        """Each client of this fixture is another principal."""
        one, other = await client_with(), await client_with(SOME_SCOPE)

        assert (await one.get(NOTES)).status_code == (await other.get(NOTES)).status_code == 200
        assert one.headers["X-API-Key"] != other.headers["X-API-Key"]


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


async def start(app: FastAPI) -> str:
    """Run the startup, which must fail with TypeError. Return what the server logs."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(TypeError):
        await app({"type": "lifespan", "state": {}}, receive, send)
    (failed,) = sent
    assert failed["type"] == "lifespan.startup.failed"
    return str(failed["message"])


async def get_owner(principal: Annotated[Principal, require(SOME_SCOPE)]) -> str:
    return principal.id


class TestStart:
    @pytest.mark.parametrize(
        "dependency",
        [Depends(get_principal), require(SOME_SCOPE), Depends(get_owner)],
        ids=["principal", "scope", "sub-dependency"],
    )
    async def test_refuses_an_anonymous_endpoint_that_takes_the_principal(
        self, fresh_app: FastAPI, dependency: Any
    ) -> None:
        @fresh_app.get(WORK)
        @allow_anonymous
        async def work(_: Annotated[Any, dependency]) -> None: ...

        assert (await start(fresh_app)).startswith("`work` allows anonymous callers")

    @pytest.mark.parametrize("place", PLACES)
    async def test_refuses_an_anonymous_endpoint_with_scopes(
        self, fresh_app: FastAPI, place: str
    ) -> None:
        at = {each: [require(SOME_SCOPE)] if each == place else [] for each in PLACES}
        router = APIRouter(dependencies=at["router"])

        @router.get(WORK, dependencies=at["route"])
        @allow_anonymous
        async def work() -> None: ...

        fresh_app.router.dependencies += at["application"]
        fresh_app.include_router(router, dependencies=at["include"])

        assert "allows anonymous callers" in await start(fresh_app)

    async def test_refuses_an_anonymous_websocket_with_scopes(self, fresh_app: FastAPI) -> None:
        @fresh_app.websocket("/socket", dependencies=[require(SOME_SCOPE)])
        @allow_anonymous
        async def socket(_: WebSocket) -> None: ...

        assert (await start(fresh_app)).startswith("`socket` allows anonymous callers")

    def test_accepts_other_endpoints(self, fresh_app: FastAPI) -> None:
        @fresh_app.get("/one", dependencies=[require(SOME_SCOPE)])
        async def one(_: CurrentPrincipal, owner: Annotated[str, Depends(get_owner)]) -> None: ...

        @fresh_app.get("/two")
        @allow_anonymous
        async def two(_: OptionalPrincipal) -> None: ...

        fresh_app.mount("/three", FastAPI())

        check_routes(fresh_app.routes)

    @pytest.mark.parametrize("scopes", [(), (str(SOME_SCOPE),), (Scope,)])
    def test_refuses_require_without_scopes(self, scopes: Any) -> None:
        with pytest.raises(TypeError, match="needs at least one member of `Scope`"):
            require(*scopes)


class TestWebSocket:
    async def test_takes_the_principal(
        self, fresh_app: FastAPI, database: Database, locked: Settings
    ) -> None:
        @fresh_app.websocket("/socket", dependencies=[require(SOME_SCOPE)])
        async def socket(websocket: WebSocket, principal: CurrentPrincipal) -> None:
            await websocket.accept()
            await websocket.send_text(f"{principal} {principal_id.get()}")

        weak = {"X-API-Key": await create_key(database)}
        async with served(fresh_app, database, locked) as host:
            url = f"ws://{host}/socket"
            async with connect_socket(url, additional_headers=HEADERS) as opened:
                one, other = str(await opened.recv()).split()
            assert one == other
            assert one.startswith("api-key:")
            for headers, status in (({}, 401), ({"X-API-Key": "wrong"}, 401), (weak, 403)):
                with pytest.raises(InvalidStatus) as rejected:
                    await connect_socket(url, additional_headers=headers)
                response = rejected.value.response
                assert response.status_code == status
                assert response.headers["content-type"] == "application/problem+json"
                assert response.headers["www-authenticate"]

    async def test_may_allow_anonymous_callers(
        self, fresh_app: FastAPI, database: Database, locked: Settings
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
