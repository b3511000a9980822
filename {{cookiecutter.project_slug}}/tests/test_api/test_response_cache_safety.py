"""No cached response bypasses a dependency or middleware that may reject the request."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Request
from fastapi.security import APIKeyHeader, HTTPBearer, OAuth2PasswordBearer
from httpx import AsyncClient
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response
from starlette.routing import Host
from starlette.types import Message

from main import add_middleware
from src.api.deps import get_read_session
from src.api.rate_limits import rate_limit
from src.api.response_cache import CachedRoute, cached_response, check_routes
from src.cache import Cache, MemoryBackend
from src.core.config import Settings
from src.db.session import Database
from tests.fixtures.client import connect

TENANT = {"X-Tenant": "a"}


async def tenant(x_tenant: Annotated[str | None, Header()] = None) -> str:
    if x_tenant is None:
        raise HTTPException(401)
    return x_tenant


async def tenant_of_request(request: Request) -> str:
    return await tenant(request.headers.get("x-tenant"))


class Headers(BaseModel):
    x_tenant: str | None = None


async def tenant_of_model(headers: Annotated[Headers, Header()]) -> str:
    return await tenant(headers.x_tenant)


async def nested(_: Annotated[str, Depends(tenant)]) -> str:
    return "nested"


async def audit() -> int:
    return 1


async def none() -> None: ...
async def yields_none() -> AsyncIterator[None]:
    yield


def cached_router(path: str = "/n", endpoint: Any = None, **options: Any) -> APIRouter:
    """Return a router with one cached route. Its response counts the calls of the endpoint."""
    calls = 0

    async def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    router = APIRouter(route_class=CachedRoute)
    router.get(path, dependencies=[cached_response(**options)])(endpoint or count)
    return router


@pytest.fixture
def client_for(database: Database) -> Callable[[FastAPI], AsyncClient]:
    """Clients with one cache, as for an application that keeps running."""
    cache = Cache(MemoryBackend(), ttl=60)
    return lambda app: connect(app, database, cache=cache)


async def start(app: FastAPI) -> None:
    """Run the startup. Raises the error that stops the application."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await app({"type": "lifespan", "state": {}}, receive, send)
    finally:
        assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


GUARDS = [
    tenant,
    tenant_of_request,
    tenant_of_model,
    nested,
    audit,
    HTTPBearer(),
    APIKeyHeader(name="X-Key"),
    OAuth2PasswordBearer(tokenUrl="token"),
]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: getattr(guard, "__name__", type(guard)))
def test_dependency_that_may_reject_the_request_is_refused(guard: Any) -> None:
    app = FastAPI(dependencies=[Depends(guard)])
    app.include_router(cached_router())
    with pytest.raises(TypeError, match="cached_response"):
        check_routes(app.routes)


@pytest.mark.parametrize("level", ["include", "outer include", "router", "mount"])
async def test_dependency_of_a_router_is_checked_at_startup(
    fresh_app: FastAPI, client_for: Callable[[FastAPI], AsyncClient], level: str
) -> None:
    """A route that is added later is checked at its first request."""
    guards = [Depends(tenant)]
    outer = FastAPI(dependencies=guards) if level == "mount" else APIRouter()
    if level == "router":
        outer = APIRouter(dependencies=guards)
    outer.include_router(cached_router(), dependencies=guards if level == "include" else [])
    if isinstance(outer, FastAPI):
        fresh_app.mount("/outer", outer)
    else:
        guards = guards if level == "outer include" else []
        fresh_app.include_router(outer, prefix="/outer", dependencies=guards)

    with pytest.raises(TypeError, match="x-tenant"):
        await start(fresh_app)
    async with client_for(fresh_app) as client:
        for _ in range(2):
            with contextlib.suppress(TypeError):  # from a mounted application
                assert (await client.get("/outer/n", headers=TENANT)).status_code == 500


async def test_dependency_with_vary_is_never_bypassed(
    fresh_app: FastAPI, client_for: Callable[[FastAPI], AsyncClient]
) -> None:
    for guard, prefix in ((tenant, "/a"), (tenant_of_model, "/b")):
        router = cached_router(vary=["X-Tenant"])
        fresh_app.include_router(router, prefix=prefix, dependencies=[Depends(guard)])
    check_routes(fresh_app.routes)
    async with client_for(fresh_app) as client:
        for path in ("/a/n", "/b/n"):
            for headers, status in ((None, 401), (TENANT, 200), (None, 401), (TENANT, 200)):
                response = await client.get(path, headers=headers)
                assert response.status_code == status
            assert response.json() == 1


@pytest.mark.parametrize("guard", [none, yields_none])
def test_dependency_without_a_value_is_refused(guard: Any) -> None:
    async def endpoint(_: Annotated[None, Depends(guard)]) -> None: ...

    with pytest.raises(TypeError, match="returns no value"):
        cached_router(endpoint=endpoint)
    cached_router(endpoint=endpoint, shared=True)


async def takes_request(request: Request) -> None: ...
async def takes_body(body: Annotated[str, Body()]) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": ["a:{typo}"]}, "no such path parameter"),
        ({"tags": ["a:{x.y}"]}, "no such path parameter"),
        ({"tags": "notes"}, "`tags` must be a list"),
        ({"vary": "X-Tenant"}, "`vary` must be a list"),
        ({"endpoint": takes_request}, "takes the request"),
        ({"endpoint": takes_body}, "body"),
    ],
)
def test_unsafe_or_invalid_route_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        cached_router("/n/{x}", **options)


def test_identity_must_not_be_async() -> None:
    async def identity(_: object) -> str:
        return "a"

    with pytest.raises(TypeError, match="must not be `async`"):
        cached_router(identity=identity)


def test_second_cached_response_and_one_of_a_router_are_refused() -> None:
    router = APIRouter(route_class=CachedRoute, dependencies=[cached_response()])
    with pytest.raises(TypeError, match="more than one"):
        router.get("/n", dependencies=[cached_response(ttl=5)])(none)

    async def parameter(_: Annotated[None, cached_response()]) -> None: ...

    for endpoint in (none, parameter):
        app, plain = FastAPI(), APIRouter()
        plain.get("/n")(endpoint)
        guards = [cached_response()] if endpoint is none else []
        app.include_router(plain, dependencies=guards)
        with pytest.raises(TypeError, match="route_class=CachedRoute"):
            check_routes(app.routes)


async def test_prefix_with_a_path_parameter_is_in_the_key_and_in_tags(
    fresh_app: FastAPI, database: Database
) -> None:
    async def get(tenant: str, number: int) -> str:
        return f"{tenant} {number}"

    cache = Cache(MemoryBackend(), ttl=60)
    router = cached_router("/n/{number}", get, tags=["tenant:{tenant}"])
    fresh_app.include_router(router, prefix="/{tenant}")
    async with connect(fresh_app, database, cache=cache) as client:
        for path in ("/a/n/1", "/b/n/1", "/a/n/1"):
            assert (await client.get(path)).json() == path[1:].replace("/n/", " ")
    assert {key async for key in cache.backend.scan("tag:*")} == {"tag:tenant:a", "tag:tenant:b"}


async def test_mounted_applications_do_not_share_responses(
    fresh_app: FastAPI, client_for: Callable[[FastAPI], AsyncClient]
) -> None:
    """Nor do the hosts of one application."""

    async def get(request: Request) -> str:
        return f"{request.path_params} {request.scope['root_path']}"

    mounted = FastAPI()
    mounted.include_router(cached_router(endpoint=get, shared=True))
    for path in ("/a", "/b", "/t/{tenant}"):
        fresh_app.mount(path, mounted)
    fresh_app.router.routes.append(Host("{tenant}.test", mounted))
    async with client_for(fresh_app) as client:
        paths = ["/a/n", "/b/n", "/t/1/n", "/t/2/n", "http://x.test/n", "http://y.test/n"]
        for _ in range(2):
            assert len({(await client.get(path)).text for path in paths}) == len(paths)


async def reject_anonymous(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    if "x-tenant" not in request.headers:
        return Response(status_code=401)
    return await call_next(request)


@pytest.mark.parametrize("is_inside", [True, False])
async def test_middleware_that_authenticates_is_never_bypassed(
    fresh_app: FastAPI,
    settings: Settings,
    client_for: Callable[[FastAPI], AsyncClient],
    *,
    is_inside: bool,
) -> None:
    """Inside of the cache's middleware or outside, of the application or of a mounted one."""
    mounted = FastAPI()
    mounted.add_middleware(BaseHTTPMiddleware, dispatch=reject_anonymous)
    wrapped = FastAPI()
    for app in (fresh_app, mounted, wrapped):
        app.include_router(cached_router())
    if is_inside:
        fresh_app.user_middleware.clear()
        fresh_app.add_middleware(BaseHTTPMiddleware, dispatch=reject_anonymous)
        add_middleware(fresh_app, settings)
    else:
        fresh_app.add_middleware(BaseHTTPMiddleware, dispatch=reject_anonymous)
    fresh_app.mount("/mounted", mounted)
    fresh_app.mount("/wrapped", BaseHTTPMiddleware(wrapped, dispatch=reject_anonymous))
    check_routes(fresh_app.routes)
    async with client_for(fresh_app) as client:
        for path in ("/n", "/mounted/n", "/wrapped/n"):
            for headers, status in ((TENANT, 200), (None, 401), (TENANT, 200), (None, 401)):
                response = await client.get(path, headers=headers)
                assert response.status_code == status
                assert response.text in {"1", ""}  # computed once


async def test_route_class_that_checks_requests_is_never_bypassed(
    fresh_app: FastAPI, client_for: Callable[[FastAPI], AsyncClient]
) -> None:
    class CheckedRoute(CachedRoute):
        def get_route_handler(self) -> Any:
            handler = super().get_route_handler()

            async def check(request: Request) -> Response:
                await tenant_of_request(request)
                return await handler(request)

            return check

    router = cached_router()
    checked = APIRouter(route_class=CheckedRoute)
    checked.get("/n", dependencies=[cached_response()])(router.routes[0].endpoint)  # type: ignore[attr-defined]
    fresh_app.include_router(checked)
    async with client_for(fresh_app) as client:
        for headers, status in ((TENANT, 200), (None, 401), (TENANT, 200)):
            assert (await client.get("/n", headers=headers)).status_code == status


async def test_overridden_dependency_bypasses_the_cache(
    fresh_app: FastAPI, client_for: Callable[[FastAPI], AsyncClient]
) -> None:
    """A test that replaces a value must see it. Replacing the session keeps the cache."""

    async def value() -> str:
        return "own"

    async def get(found: Annotated[str, Depends(value)]) -> str:
        return found

    fresh_app.include_router(cached_router(endpoint=get))
    async with client_for(fresh_app) as client:
        for override in (None, "a", "b", None):
            fresh_app.dependency_overrides = {value: lambda text=override: text} if override else {}
            assert (await client.get("/n")).json() == (override or "own")
        fresh_app.dependency_overrides = {get_read_session: contextlib.nullcontext}
        fresh_app.dependency_overrides[none] = none
        assert (await client.get("/n")).json() == "own"


async def test_cached_response_does_not_repeat_the_rate_limit_of_a_caller(
    fresh_app: FastAPI, database: Database
) -> None:
    limit = rate_limit("5/minute")
    fresh_app.include_router(cached_router(shared=True), dependencies=[limit])
    async with connect(fresh_app, database, rate_limits=True) as client:
        responses = [await client.get("/n") for _ in range(2)]

    assert ["ratelimit" in each.headers for each in responses] == [True, False]
    assert [each.json() for each in responses] == [1, 1]
