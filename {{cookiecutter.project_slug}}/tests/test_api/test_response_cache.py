"""Response caching, on routes that the tests add."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from httpx import AsyncClient
from prometheus_client import REGISTRY
from starlette.background import BackgroundTask

from src.api.auth import allow_anonymous, get_principal
from src.api.response_cache import CachedRoute, cached_response
from src.cache import Cache, MemoryBackend
from src.db.session import Database
from tests.fixtures.client import connect

TIMEOUT_SECONDS = 60
ClientOf = Callable[..., AsyncClient]


class Counter:
    """Counts the calls of an endpoint, and returns their number."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, int]:
        self.calls += 1
        return {"call": self.calls}


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def cache() -> Cache:
    return Cache(MemoryBackend(), ttl=60)


@pytest.fixture
def router() -> APIRouter:
    return APIRouter(prefix="/t", route_class=CachedRoute)


@pytest.fixture
def client_of(
    fresh_app: FastAPI, database: Database, cache: Cache, router: APIRouter, counter: Counter
) -> ClientOf:
    """Return a function that adds a cached route and returns a client for it."""

    def client_of(path: str = "/n", endpoint: Any = None, **policy: Any) -> AsyncClient:
        async def count() -> dict[str, int]:
            return counter()

        dependencies = [cached_response(**policy)]
        router.get(path, dependencies=dependencies)(endpoint or count)
        outer = APIRouter()
        outer.include_router(router)
        fresh_app.include_router(outer, prefix="/x")
        return connect(fresh_app, database, cache=cache)

    return client_of


async def test_second_request_does_not_run_the_endpoint(
    client_of: ClientOf, counter: Counter
) -> None:
    """Body and headers are the same, except the request id. The metrics count the request.

    The cache ignores a query that the endpoint does not read.
    """
    client = client_of()
    labels = {"method": "GET", "route": "/x/t/n", "status": "200"}
    before = REGISTRY.get_sample_value("http_requests_total", labels) or 0
    responses = [await client.get(f"/x/t/n?unread={number}") for number in range(4)]

    assert counter.calls == 1
    assert {response.content for response in responses} == {b'{"call":1}'}
    assert all(response.headers["content-type"] == "application/json" for response in responses)
    assert len({response.headers["x-request-id"] for response in responses}) == 4
    assert len({response.headers["etag"] for response in responses}) == 1
    assert all(response.headers["x-content-type-options"] == "nosniff" for response in responses)
    assert REGISTRY.get_sample_value("http_requests_total", labels) == before + 4


async def test_each_query_has_a_separate_response(client_of: ClientOf, counter: Counter) -> None:
    """The order of parameters does not matter, but the order of the values of one parameter does."""

    async def search(q: Annotated[list[str], Query()], limit: int = 5) -> dict[str, Any]:
        return {"q": q, "limit": limit, **counter()}

    client = client_of(endpoint=search)
    responses = [
        (await client.get(f"/x/t/n?{query}")).json()
        for query in ("q=a&limit=5", "limit=5&q=a", "q=b", "q=a&q=b", "q=b&q=a", "q=a&limit=5")
    ]

    assert [response["call"] for response in responses] == [1, 1, 2, 3, 4, 1]
    assert responses[4]["q"] == ["b", "a"]


async def test_query_and_host_are_in_the_key_of_an_endpoint_that_takes_the_request(
    client_of: ClientOf, router: APIRouter
) -> None:
    """Otherwise, one caller could choose the links in the responses to others."""

    def read_query(request: Request) -> str | None:
        return request.query_params.get("q")

    @router.get("/dependency", dependencies=[cached_response(shared=True)])
    async def by_dependency(q: Annotated[str | None, Depends(read_query)]) -> str | None:
        return q

    async def get(request: Request) -> str:
        return str(request.url)

    client = client_of(endpoint=get, shared=True)
    for url in ("http://a.test/x/t/n", "http://b.test/x/t/n", "http://a.test/x/t/n?q=1"):
        for _ in range(2):
            assert (await client.get(url)).json() == url
    for value in "ab":
        assert (await client.get(f"/x/t/dependency?q={value}")).json() == value


async def test_different_notations_of_a_uuid_share_a_response(
    client_of: ClientOf, cache: Cache, counter: Counter
) -> None:
    """An invalidation therefore applies to all of them."""

    async def get(key: UUID) -> dict[str, Any]:
        return {"key": str(key), **counter()}

    client = client_of("/k/{key}", get, tags=["key:{key}"])
    key = uuid4()
    for notation in (str(key), str(key).upper(), key.hex):
        assert (await client.get(f"/x/t/k/{notation}")).json()["call"] == 1

    await cache.invalidate(tags=[f"key:{key}"])

    for notation in (key.hex, str(key).upper(), str(key)):
        assert (await client.get(f"/x/t/k/{notation}")).json()["call"] == 2


async def test_invalid_request_is_refused(client_of: ClientOf) -> None:
    async def get(key: int, limit: Annotated[int, Query(le=10)] = 1) -> dict[str, int]:
        return {"key": key, "limit": limit}

    client = client_of("/k/{key}", get)
    assert (await client.get("/x/t/k/1")).status_code == 200
    assert (await client.get("/x/t/k/one")).status_code == 422
    assert (await client.get("/x/t/k/1?limit=11")).status_code == 422
    assert (await client.get("/x/t/k/1?limit=11")).status_code == 422


@pytest.mark.parametrize("header", ["Authorization", "Cookie", "X-API-Key"])
async def test_request_with_credentials_bypasses_the_cache_of_a_public_endpoint(
    client_of: ClientOf, counter: Counter, header: str
) -> None:
    """It does not receive a cached response, and its response is not cached."""

    @allow_anonymous
    async def get() -> dict[str, int]:
        return counter()

    client = client_of(endpoint=get)
    await client.get("/x/t/n", headers={header: "a=b"})
    await client.get("/x/t/n")
    response = await client.get("/x/t/n", headers={header: "a=b"})

    assert response.json() == {"call": 3}
    assert (await client.get("/x/t/n")).json() == {"call": 2}
    assert counter.calls == 3


async def test_identity_gives_each_caller_a_private_response(
    client_of: ClientOf,
) -> None:
    client = client_of(identity=lambda caller: caller.headers.get("authorization"), max_age=30)
    for who, call in (("ann", 1), ("bob", 2), ("ann", 1)):
        response = await client.get("/x/t/n", headers={"Authorization": who})
        assert response.json() == {"call": call}
        assert response.headers["cache-control"] == "private, max-age=30"
    for call in (3, 4):
        assert (await client.get("/x/t/n")).json() == {"call": call}  # no caller, no cache


async def test_vary_headers_are_in_the_key(client_of: ClientOf, counter: Counter) -> None:
    async def greet(accept_language: Annotated[str | None, Header()] = None) -> dict[str, Any]:
        return {"language": accept_language, **counter()}

    client = client_of(endpoint=greet, vary=["Accept-Language"])
    for language, call in (("de", 1), ("en", 2), ("de", 1)):
        response = await client.get("/x/t/n", headers={"Accept-Language": language})
        assert response.json() == {"language": language, "call": call}
        assert "Accept-Language" in response.headers["vary"]


@pytest.mark.parametrize("sent", ["{etag}", 'W/{etag}, "x"', '"x", {etag}', "*"])
async def test_client_with_the_current_etag_receives_304(
    client_of: ClientOf, cache: Cache, sent: str
) -> None:
    """The 304 has the headers that RFC 9110 requires. A changed response is sent again."""
    client = client_of(max_age=10, tags=["n"])
    etag = (await client.get("/x/t/n")).headers["etag"]
    response = await client.get("/x/t/n", headers={"If-None-Match": sent.format(etag=etag)})

    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"] == etag
    assert response.headers["cache-control"] == "private, max-age=10"
    assert response.headers["vary"].startswith("authorization, cookie, x-api-key")
    assert "content-type" not in response.headers

    await cache.invalidate(tags=["n"])
    changed = await client.get("/x/t/n", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.headers["etag"] != etag) == (200, True)


async def test_head_shares_the_response_of_get(client_of: ClientOf, counter: Counter) -> None:
    client = client_of()
    client.headers["Accept-Encoding"] = "identity"
    head, get = await client.head("/x/t/n"), await client.get("/x/t/n")
    known = {"If-None-Match": get.headers["etag"]}

    assert (head.content, counter.calls) == (b"", 1)
    for name in ("etag", "cache-control", "content-length", "content-type"):
        assert head.headers[name] == get.headers[name]
    assert (await client.head("/x/t/n", headers=known)).status_code == 304


async def test_every_header_and_byte_is_cached(client_of: ClientOf) -> None:
    async def endpoint() -> Response:
        response = Response(bytes(range(256)), headers={"X-Empty": "", "X-Text": "caf\xe9"})
        response.headers.append("Link", "</a>")
        response.headers.append("Link", "</b>")
        return response

    client = client_of(endpoint=endpoint)
    first, second = await client.get("/x/t/n"), await client.get("/x/t/n")

    assert second.content == first.content == bytes(range(256))
    own = {"x-request-id"}
    cached = [each for each in second.headers.multi_items() if each[0] not in own]
    assert cached == [each for each in first.headers.multi_items() if each[0] not in own]
    assert ("x-empty", "") in cached
    assert second.headers.get_list("link") == ["</a>", "</b>"]


async def test_etag_of_the_endpoint_is_not_replaced(client_of: ClientOf) -> None:
    """A request that bypasses the cache can receive a 304 too."""

    @allow_anonymous
    async def tagged(response: Response) -> dict[str, str]:
        response.headers["ETag"] = '"7"'
        return {}

    client = client_of(endpoint=tagged, max_age=10)
    for headers in ({}, {}, {"X-API-Key": "key"}):
        response = await client.get("/x/t/n", headers=headers)
        assert response.headers["etag"] == '"7"'
        known = {**headers, "If-None-Match": '"7"'}
        assert (await client.get("/x/t/n", headers=known)).status_code == 304
    assert response.headers["cache-control"] == "private, no-cache"


async def test_background_work_runs_even_if_the_etag_matches(
    client_of: ClientOf, counter: Counter
) -> None:
    async def get() -> Response:
        return Response("x", headers={"ETag": '"1"'}, background=BackgroundTask(counter))

    client = client_of(endpoint=get)
    for _ in range(2):
        await client.get("/x/t/n", headers={"If-None-Match": '"1"'})

    assert counter.calls == 2


def with_cookie(number: int) -> Response:
    response = Response(str(number))
    response.set_cookie("session", "x")
    return response


async def nothing() -> None:
    pass


@pytest.mark.parametrize(
    "response",
    [
        with_cookie,
        lambda number: Response(str(number), status_code=202),
        lambda number: Response(str(number), headers={"Cache-Control": "no-store"}),
        lambda number: Response(str(number), headers={"Cache-Control": "private, max-age=5"}),
        lambda number: Response(str(number), background=BackgroundTask(nothing)),
        lambda number: StreamingResponse(iter([str(number)])),
        lambda number: Response(str(number), headers={"Vary": "Accept-Language"}),
        lambda number: Response(str(number), headers={"X-Text": "one\ntwo"}),
    ],
    ids=["cookie", "202", "no-store", "private", "background", "stream", "vary", "newline"],
)
async def test_response_that_must_not_be_shared_is_not_cached(
    client_of: ClientOf, counter: Counter, response: Callable[[int], Response]
) -> None:
    async def endpoint() -> Response:
        return response(counter()["call"])

    client = client_of(endpoint=endpoint)
    assert [(await client.get("/x/t/n")).text for _ in range(3)] == ["1", "2", "3"]


async def test_uncached_responses_do_not_wait_for_each_other(client_of: ClientOf) -> None:
    """Only the first one delays the others, because its response might be cacheable."""
    all_others = asyncio.Barrier(19)
    calls = count(1)

    async def endpoint() -> Response:
        if next(calls) > 1:
            await all_others.wait()
        else:
            for _ in range(1000):  # let the other requests start
                await asyncio.sleep(0)
        return Response("x", headers={"Cache-Control": "no-store"})

    client = client_of(endpoint=endpoint)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await asyncio.gather(*(client.get("/x/t/n") for _ in range(20)))

    assert next(calls) == 21


async def test_errors_are_not_cached(client_of: ClientOf, counter: Counter) -> None:
    async def fail() -> None:
        counter()
        raise RuntimeError

    client = client_of(endpoint=fail)
    for _ in range(3):
        assert (await client.get("/x/t/n")).status_code == 500
    assert counter.calls == 3


async def test_cached_response_without_a_cached_route_is_an_error(
    fresh_app: FastAPI, database: Database
) -> None:
    """Otherwise, the policy would have no effect."""
    router = APIRouter()
    router.get("/n", dependencies=[cached_response()])(nothing)
    fresh_app.include_router(router)
    async with connect(fresh_app, database) as client:
        assert (await client.get("/n")).status_code == 500


async def read_language(accept_language: Annotated[str, Header()]) -> None: ...


def read_caller(request: Request) -> str | None:
    return request.headers.get("x-token")


async def read_cookie(session: Annotated[str, Cookie()]) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "options", "message"),
    [
        (read_language, {}, "`vary`"),
        (read_cookie, {}, "identity"),
        (nothing, {"dependencies": [Depends(get_principal)]}, "identity"),
        (nothing, {"dependencies": [Depends(read_caller)]}, "shared=True"),
        (nothing, {"methods": ["POST"]}, "only GET"),
    ],
)
def test_route_with_an_unsafe_policy_is_refused(
    router: APIRouter, endpoint: Any, options: dict[str, Any], message: str
) -> None:
    """When the route is declared, before a caller can receive the response to another one."""
    dependencies = [cached_response(), *options.pop("dependencies", [])]
    with pytest.raises(TypeError, match=message):
        router.add_api_route("/n", endpoint, dependencies=dependencies, **options)
