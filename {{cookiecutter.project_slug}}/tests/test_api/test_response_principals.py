"""A cached response reaches only those principals who would receive it from the endpoint."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from httpx import AsyncClient
from pydantic import SecretStr
from sqlalchemy import URL, func, update

from src.api.auth import (
    CurrentPrincipal,
    OptionalPrincipal,
    Require,
    allow_anonymous,
    authenticate,
    get_optional_principal,
    get_principal,
    require,
)
from src.api.response_cache import CachedRoute, by_principal, cached_response, check_routes
from src.cache import Cache, MemoryBackend
from src.core.config import Settings
from src.core.exceptions import add_exception_handlers
from src.db.models.api_key import ApiKey
from src.db.session import Database, open_database
from src.domain.principal import Principal, PrincipalKind, Scope
from tests.fixtures.client import connect, create_key
from tests.test_api.test_scopes import PLACES, SOME_SCOPE, start

PATH = "/n"


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        return self.calls


def add(
    app: FastAPI, endpoint: Any, place: str = "", dependency: Any = None, **policy: Any
) -> None:
    """Add a cached endpoint, with a dependency at one of PLACES."""
    at = {each: [dependency] if each == place else [] for each in PLACES}
    router = APIRouter(route_class=CachedRoute, dependencies=at["router"])
    router.get(PATH, dependencies=[*at["route"], cached_response(**policy)])(endpoint)
    app.router.dependencies += at["application"]
    app.include_router(router, dependencies=at["include"])


@pytest.fixture
def client(fresh_app: FastAPI, database: Database, settings: Settings) -> AsyncClient:
    """A client that must send credentials, of an application that keeps its cache."""
    locked = settings.model_copy(update={"API_KEYS": [SecretStr("bootstrap")]})
    return connect(fresh_app, database, locked, cache=Cache(MemoryBackend(), ttl=60))


@pytest.mark.parametrize("place", PLACES)
async def test_hit_needs_the_scopes(
    fresh_app: FastAPI, client: AsyncClient, database: Database, place: str
) -> None:
    """The second round uses the paths that the middleware knows."""
    add(fresh_app, Counter(), place, require(SOME_SCOPE))
    check_routes(fresh_app.routes)
    allowed, weak = await create_key(database, SOME_SCOPE), await create_key(database)
    cases = [(allowed, 200), (weak, 403), ("wrong", 401), (None, 401), ("bootstrap", 200)]

    for _ in range(3):
        for method in ("GET", "HEAD"):
            for key, status in cases:
                response = await client.request(method, PATH, headers=key_header(key))
                assert response.status_code == status
                if status == 200:
                    assert response.text in {"1", ""}
                    assert response.headers["cache-control"] == "private, no-cache"


def key_header(key: str | None) -> dict[str, str]:
    return {"X-API-Key": key} if key else {}


async def test_hit_needs_a_valid_credential(
    fresh_app: FastAPI, client: AsyncClient, database: Database
) -> None:
    """An endpoint that declares nothing needs one too. A revoked key gets no hit."""
    add(fresh_app, Counter(), max_age=30)
    key = await create_key(database)

    for _ in range(3):
        response = await client.get(PATH, headers=key_header(key))
        assert response.json() == 1
        assert response.headers["cache-control"] == "private, max-age=30"
        assert "x-api-key" in response.headers["vary"]
        assert (await client.get(PATH)).status_code == 401
    async with database.transaction() as session:
        await session.execute(update(ApiKey).values(revoked_at=func.now()))
    assert (await client.get(PATH, headers=key_header(key))).status_code == 401
    assert (await client.get(PATH, headers=key_header("bootstrap"))).json() == 1


async def test_principals_do_not_see_the_responses_of_others(
    fresh_app: FastAPI, client: AsyncClient, database: Database
) -> None:
    counter = Counter()

    async def endpoint(principal: Annotated[Principal, require(SOME_SCOPE)]) -> str:
        return f"{principal} {await counter()}"

    add(fresh_app, endpoint, identity=by_principal)
    check_routes(fresh_app.routes)
    keys = [await create_key(database, SOME_SCOPE) for _ in range(2)]

    for _ in range(3):
        for number, key in enumerate(keys, 1):
            response = await client.get(PATH, headers=key_header(key))
            assert response.json() == f"api-key:{key.split('_')[1]} {number}"
        assert (await client.get(PATH)).status_code == 401


async def test_changed_scopes_change_the_response(
    fresh_app: FastAPI, client: AsyncClient, database: Database
) -> None:
    async def endpoint(principal: CurrentPrincipal) -> list[str]:
        return sorted(principal.scopes)

    add(fresh_app, endpoint, identity=by_principal)
    key = await create_key(database, *Scope)

    assert (await client.get(PATH, headers=key_header(key))).json() == sorted(Scope)
    async with database.transaction() as session:
        await session.execute(update(ApiKey).values(scopes=[]))
    assert (await client.get(PATH, headers=key_header(key))).json() == []


async def test_public_endpoint_may_depend_on_the_principal(
    fresh_app: FastAPI, client: AsyncClient
) -> None:
    """Without a valid credential, the cache is bypassed."""
    counter = Counter()

    @allow_anonymous
    async def endpoint(principal: OptionalPrincipal) -> str:
        return f"{principal} {await counter()}"

    add(fresh_app, endpoint, identity=by_principal)
    check_routes(fresh_app.routes)
    bootstrap = key_header("bootstrap")

    found = [(await client.get(PATH, headers=each)).json() for each in ({}, bootstrap) * 3]

    assert [text.split()[-1] for text in found] == ["1", "2", "3", "2", "4", "2"]
    assert (await client.get(PATH, headers=key_header("wrong"))).status_code == 401


async def test_public_endpoint_serves_everyone_the_same(
    fresh_app: FastAPI, client: AsyncClient
) -> None:
    add(fresh_app, allow_anonymous(anonymous_counter()), max_age=5)

    for _ in range(3):
        response = await client.get(PATH)
        assert response.json() == 1
        assert response.headers["cache-control"] == "public, max-age=5"
    with_key = await client.get(PATH, headers=key_header("bootstrap"))
    assert with_key.json() == 2
    assert with_key.headers["cache-control"] == "private, no-cache"


def anonymous_counter() -> Callable[[], Any]:
    counter = Counter()

    async def endpoint() -> int:
        return await counter()

    return endpoint


async def owner(principal: CurrentPrincipal) -> str:
    return principal.id


TAKES_PRINCIPAL = [
    Depends(get_principal),
    Depends(get_optional_principal),
    require(SOME_SCOPE),
    Depends(owner),
]


@pytest.mark.parametrize("dependency", TAKES_PRINCIPAL, ids=range(4))
async def test_endpoint_that_takes_the_principal_is_refused(
    fresh_app: FastAPI, dependency: Any
) -> None:
    async def endpoint(_: Annotated[Any, dependency]) -> None: ...

    with pytest.raises(TypeError, match="`endpoint` may depend on the principal"):
        add(fresh_app, endpoint)
    with pytest.raises(TypeError, match="`endpoint` may depend on the principal"):
        add(fresh_app, endpoint, identity=lambda _: "everyone")
    for policy in ({"identity": by_principal}, {"shared": True}):
        add(fresh_app, endpoint, **policy)
    check_routes(fresh_app.routes)


@pytest.mark.parametrize("place", PLACES[:3])
@pytest.mark.parametrize("guard", [get_principal, get_optional_principal, owner])
async def test_dependency_that_takes_the_principal_is_refused_at_start(
    fresh_app: FastAPI, place: str, guard: Any
) -> None:
    if place == "router":
        with pytest.raises(TypeError, match="may depend on the principal"):
            add(fresh_app, Counter().__call__, place, Depends(guard))
        return
    add(fresh_app, Counter().__call__, place, Depends(guard))

    assert "may depend on the principal" in await start(fresh_app)


def test_check_of_a_subclass_of_require_is_not_skipped(fresh_app: FastAPI) -> None:
    class RequireOnMonday(Require):
        pass

    with pytest.raises(TypeError, match="may depend on the principal"):
        add(fresh_app, anonymous_counter(), "route", Depends(RequireOnMonday((SOME_SCOPE,))))


@pytest.mark.parametrize(
    "source", [Depends(get_principal), require(SOME_SCOPE)], ids=["principal", "scopes"]
)
async def test_overridden_principal_bypasses_the_cache(
    fresh_app: FastAPI, client: AsyncClient, source: Any
) -> None:
    """A test that replaces the principal must see its response."""

    async def endpoint(principal: Annotated[Principal, source]) -> str:
        return principal.id

    add(fresh_app, endpoint, identity=by_principal)
    bootstrap = key_header("bootstrap")
    for name in ("Ann", "Ben"):
        other = Principal(PrincipalKind.API_KEY, name, frozenset({SOME_SCOPE}))
        fresh_app.dependency_overrides = {get_principal: lambda other=other: other}
        assert (await client.get(PATH, headers=bootstrap)).json() == name
    fresh_app.dependency_overrides = {}
    assert (await client.get(PATH, headers=bootstrap)).json().startswith("API_KEYS-")


async def test_unavailable_database_is_503_on_a_known_path(
    fresh_app: FastAPI, database: Database, settings: Settings
) -> None:
    add(fresh_app, anonymous_counter())
    cache = Cache(MemoryBackend(), ttl=60)
    headers = key_header(await create_key(database))
    for _ in range(2):
        client = connect(fresh_app, database, settings, cache=cache)
        assert (await client.get(PATH, headers=headers)).json() == 1
    nowhere = URL.create("postgresql+asyncpg", host="127.0.0.1", port=1, database="none")

    async with open_database(nowhere, pool_size=1) as unavailable:
        client = connect(fresh_app, unavailable, settings, cache=cache)
        assert (await client.get(PATH, headers=headers)).status_code == 503


async def test_mounted_application_has_its_own_rules(
    fresh_app: FastAPI, client: AsyncClient
) -> None:
    """It is public unless it has `authenticate` too."""
    for prefix, dependencies in (("/public", []), ("/locked", [Depends(authenticate)])):
        mounted = FastAPI(dependencies=dependencies)
        add_exception_handlers(mounted)
        add(mounted, anonymous_counter())
        fresh_app.mount(prefix, mounted)
    bootstrap = key_header("bootstrap")

    for headers, public, locked in (({}, 1, 401), (bootstrap, 2, 200), ({}, 1, 401)):
        assert (await client.get(f"/public{PATH}", headers=headers)).json() == public
        response = await client.get(f"/locked{PATH}", headers=headers)
        assert response.status_code == locked
        assert locked == 401 or response.json() == 1
