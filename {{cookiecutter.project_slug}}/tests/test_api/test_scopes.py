"""`require()` checks scopes wherever it is declared, and refuses what contradicts it."""

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from pydantic import SecretStr
from starlette.types import Message
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import InvalidStatus

from src.api.auth import (
    CurrentPrincipal,
    OptionalPrincipal,
    allow_anonymous,
    get_principal,
    prepare_routes,
    require,
)
from src.core.config import Settings
from src.core.trace import principal_id
from src.db.session import Database
from src.domain.principal import Principal, PrincipalKind, Scope
from tests.fixtures.client import ClientWith, connect, create_key, served
from tests.fixtures.notes import NOTES
from tests.test_api.test_auth import HEADERS, KEY, WORK
from tests.test_api.test_idempotency import assert_problem

if not len(Scope):
    pytest.skip("the service has no scopes yet", allow_module_level=True)

SOME_SCOPE = next(iter(Scope))
PLACES = ["application", "include", "router", "route"]


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

    async def test_are_those_of_a_principal_that_a_test_replaces(
        self, fresh_app: FastAPI, database: Database
    ) -> None:
        fresh_app.get(WORK, dependencies=[require(SOME_SCOPE)])(lambda: "done")
        client = connect(fresh_app, database)

        async def replaced() -> Principal:
            return Principal(PrincipalKind.API_KEY, "Ann", frozenset())

        assert (await client.get(WORK)).status_code == 200
        fresh_app.dependency_overrides = {get_principal: replaced}
        assert (await client.get(WORK)).status_code == 403

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

        prepare_routes(fresh_app.routes)

    @pytest.mark.parametrize("scopes", [(), (str(SOME_SCOPE),), (Scope,)])
    def test_refuses_require_without_scopes(self, scopes: Any) -> None:
        with pytest.raises(TypeError, match="needs at least one member of `Scope`"):
            require(*scopes)


async def test_websocket_takes_the_principal(
    fresh_app: FastAPI, database: Database, settings: Settings
) -> None:
    @fresh_app.websocket("/socket", dependencies=[require(SOME_SCOPE)])
    async def socket(websocket: WebSocket, principal: CurrentPrincipal) -> None:
        await websocket.accept()
        await websocket.send_text(f"{principal} {principal_id.get()}")

    locked = settings.model_copy(update={"API_KEYS": [SecretStr(KEY)]})
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
