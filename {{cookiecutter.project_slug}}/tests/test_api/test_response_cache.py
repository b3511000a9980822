"""Whole answers from the cache, on routes of the tests' own."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from ipaddress import IPv4Address
from itertools import count
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from src.api.deps import ApiKey
from src.api.metrics import REQUESTS
from src.api.response_cache import CachedRoute, cached_response
from src.api.response_shortcut import CacheMiddleware
from src.cache import Cache, MemoryBackend
from src.db.session import Database
from tests.fixtures.client import connect

PATIENCE_SECONDS = 60


class Counter:
    """Counts the calls of an endpoint, and answers with their number."""

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


Serve = Callable[[APIRouter], AsyncClient]


@pytest.fixture
async def serve(fresh_app: FastAPI, database: Database, cache: Cache) -> AsyncGenerator[Serve]:
    """Return what puts a router into an application, and gives a client of that."""
    clients: list[AsyncClient] = []

    def serve(router: APIRouter) -> AsyncClient:
        outer = APIRouter()
        outer.include_router(router)
        fresh_app.include_router(outer, prefix="/x")
        clients.append(connect(fresh_app, database, own_cache=cache))
        return clients[-1]

    yield serve
    for client in clients:
        await client.aclose()


@pytest.fixture
def client_of(serve: Serve, router: APIRouter, counter: Counter) -> Callable[..., AsyncClient]:
    """Return what makes one route, whose answers are kept, and gives a client of it."""

    def client_of(path: str = "/n", endpoint: Any = None, **rule: Any) -> AsyncClient:
        async def count() -> dict[str, int]:
            return counter()

        dependencies = [cached_response(**rule)]
        router.get(path, dependencies=dependencies)(endpoint or count)
        return serve(router)

    return client_of


def bare(router: APIRouter, **state: Cache) -> tuple[CacheMiddleware, AsyncClient]:
    """Serve the router with nothing but the middleware around it, and with this state alone."""
    app = FastAPI()
    app.include_router(router)
    middleware = CacheMiddleware(app)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await middleware({**scope, "state": {**state}}, receive, send)

    return middleware, AsyncClient(transport=ASGITransport(serve), base_url="http://test")


async def test_a_second_request_is_answered_without_the_endpoint(
    client_of: Callable[..., AsyncClient], counter: Counter
) -> None:
    """With the very same body and headers, but for the id of the request."""
    client = client_of()
    answers = [await client.get("/x/t/n") for _ in range(4)]

    assert counter.calls == 1
    assert {answer.content for answer in answers} == {b'{"call":1}'}
    assert all(answer.headers["content-type"] == "application/json" for answer in answers)
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
    assert len({answer.headers["etag"] for answer in answers}) == 1
    assert all(answer.headers["x-content-type-options"] == "nosniff" for answer in answers)


async def test_a_hit_is_counted_under_its_route(client_of: Callable[..., AsyncClient]) -> None:
    """Though it is answered before routing."""
    client = client_of("/n/{key}", echo)
    counted = REQUESTS.labels("GET", "/x/t/n/{key}", 200)
    before = counted._value.get()  # noqa: SLF001 - there is no other way to read it
    for _ in range(3):
        await client.get("/x/t/n/one")

    assert counted._value.get() == before + 3  # noqa: SLF001 - as above


async def echo(key: str) -> dict[str, str]:
    return {"key": key}


async def test_many_at_once_run_the_endpoint_once(
    client_of: Callable[..., AsyncClient], counter: Counter
) -> None:
    async def slow() -> dict[str, int]:
        answer = counter()
        await asyncio.sleep(0.02)
        return answer

    client = client_of(endpoint=slow)
    answers = await asyncio.gather(*(client.get("/x/t/n") for _ in range(200)))

    assert counter.calls == 1
    assert {answer.content for answer in answers} == {b'{"call":1}'}


async def test_queries_have_answers_of_their_own(
    client_of: Callable[..., AsyncClient], counter: Counter
) -> None:
    """The order of different names does not matter, that of values of one name does."""

    async def search(q: Annotated[list[str], Query()], limit: int = 5) -> dict[str, Any]:
        return {"q": q, "limit": limit, **counter()}

    client = client_of(endpoint=search)
    answers = [
        (await client.get(f"/x/t/n?{query}")).json()
        for query in ("q=a&limit=5", "limit=5&q=a", "q=b", "q=a&q=b", "q=b&q=a", "q=a&limit=5")
    ]

    assert [answer["call"] for answer in answers] == [1, 1, 2, 3, 4, 1]
    assert answers[4]["q"] == ["b", "a"]


async def test_a_query_that_nobody_reads_makes_no_entry(
    client_of: Callable[..., AsyncClient], counter: Counter
) -> None:
    client = client_of()
    for number in range(5):
        await client.get(f"/x/t/n?noise={number}")

    assert counter.calls == 1


async def test_what_takes_the_request_has_an_answer_for_each_query_and_host(
    client_of: Callable[..., AsyncClient], router: APIRouter
) -> None:
    """Or a caller could choose the links that others are given."""

    def second(request: Request) -> str | None:
        return request.query_params.get("q")

    @router.get("/second", dependencies=[cached_response(shared=True)])
    async def by_dependency(q: Annotated[str | None, Depends(second)]) -> str | None:
        return q

    async def get(request: Request) -> str:
        return str(request.url)

    client = client_of(endpoint=get)
    for url in ("http://a.test/x/t/n", "http://b.test/x/t/n", "http://a.test/x/t/n?q=1"):
        for _ in range(2):
            assert (await client.get(url)).json() == url
    for value in "ab":
        assert (await client.get(f"/x/t/second?q={value}")).json() == value


async def test_without_a_lifespan_only_what_it_opens_is_missing(router: APIRouter) -> None:
    @router.get("/n", dependencies=[cached_response()])
    async def get() -> str:
        return "here"

    async with bare(router)[1] as client:
        assert (await client.get("/t/n")).json() == "here"


async def test_a_path_written_in_another_way_is_the_same(
    client_of: Callable[..., AsyncClient], cache: Cache, counter: Counter
) -> None:
    """So that an invalidation reaches every spelling of a UUID."""

    async def get(key: UUID) -> dict[str, Any]:
        return {"key": str(key), **counter()}

    client = client_of("/k/{key}", get, tags=["key:{key}"])
    key = uuid4()
    for spelling in (str(key), str(key).upper(), key.hex):
        assert (await client.get(f"/x/t/k/{spelling}")).json()["call"] == 1

    await cache.invalidate(tags=[f"key:{key}"])

    for spelling in (key.hex, str(key).upper(), str(key)):
        assert (await client.get(f"/x/t/k/{spelling}")).json()["call"] == 2


async def test_a_path_parameter_may_be_of_a_type_that_makes_no_key(
    client_of: Callable[..., AsyncClient], counter: Counter
) -> None:
    async def get(address: IPv4Address) -> str:
        counter()
        return str(address)

    client = client_of("/ip/{address}", get)
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        assert (await client.get(f"/x/t/ip/{address}")).json() == address
    assert counter.calls == 2


async def test_a_long_path_is_kept_but_takes_no_memory(
    router: APIRouter, cache: Cache, counter: Counter
) -> None:
    @router.get("/{text}", dependencies=[cached_response()])
    async def get(text: str) -> int:
        counter()
        return len(text)

    middleware, client = bare(router, cache=cache)
    async with client:
        for length in (1, 1000, 1, 1000):
            assert (await client.get(f"/t/{'x' * length}")).json() == length

    assert counter.calls == 2
    assert [*middleware.known] == ["/t/x"]


async def test_a_request_that_is_not_valid_is_refused_as_ever(
    client_of: Callable[..., AsyncClient],
) -> None:
    async def get(key: int, limit: Annotated[int, Query(le=10)] = 1) -> dict[str, int]:
        return {"key": key, "limit": limit}

    client = client_of("/k/{key}", get)
    assert (await client.get("/x/t/k/1")).status_code == 200
    assert (await client.get("/x/t/k/one")).status_code == 422
    assert (await client.get("/x/t/k/1?limit=11")).status_code == 422
    assert (await client.get("/x/t/k/1?limit=11")).status_code == 422


@pytest.mark.parametrize("header", ["Authorization", "Cookie", "X-API-Key"])
async def test_a_request_with_credentials_passes_the_cache_by(
    client_of: Callable[..., AsyncClient], counter: Counter, header: str
) -> None:
    """It neither gets what others were told, nor do others get what it is told."""
    client = client_of()
    await client.get("/x/t/n", headers={header: "a=b"})
    await client.get("/x/t/n")
    answer = await client.get("/x/t/n", headers={header: "a=b"})

    assert answer.json() == {"call": 3}
    assert (await client.get("/x/t/n")).json() == {"call": 2}
    assert counter.calls == 3


async def test_with_identity_each_caller_has_an_answer_of_its_own(
    client_of: Callable[..., AsyncClient],
) -> None:
    def identity(connection: HTTPConnection) -> str | None:
        return connection.headers.get("authorization")

    client = client_of(identity=identity, max_age=30)
    for who, call in (("ann", 1), ("bob", 2), ("ann", 1), ("bob", 2)):
        answer = await client.get("/x/t/n", headers={"Authorization": who})
        assert answer.json() == {"call": call}
        assert answer.headers["cache-control"] == "private, max-age=30"
    for call in (3, 4):
        assert (await client.get("/x/t/n")).json() == {"call": call}


async def test_headers_that_matter_are_part_of_the_key(
    client_of: Callable[..., AsyncClient], counter: Counter
) -> None:
    async def greet(accept_language: Annotated[str | None, Header()] = None) -> dict[str, Any]:
        return {"language": accept_language, **counter()}

    client = client_of(endpoint=greet, vary=["Accept-Language"])
    for language, call in (("de", 1), ("en", 2), ("de", 1)):
        answer = await client.get("/x/t/n", headers={"Accept-Language": language})
        assert answer.json() == {"language": language, "call": call}
        assert answer.headers["vary"] == "Accept-Language"


@pytest.mark.parametrize("sent", ["{etag}", 'W/{etag}, "x"', '"x", {etag}', "*"])
async def test_a_client_that_has_the_answer_is_told_so(
    client_of: Callable[..., AsyncClient], sent: str
) -> None:
    """304, from the cache and from the endpoint alike, with the headers that it needs."""
    client = client_of(max_age=10)
    etag = (await client.get("/x/t/n")).headers["etag"]
    answer = await client.get("/x/t/n", headers={"If-None-Match": sent.format(etag=etag)})

    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == etag
    assert answer.headers["cache-control"] == "public, max-age=10"
    assert answer.headers["vary"] == "authorization, cookie, x-api-key"
    assert "content-type" not in answer.headers


async def test_a_client_that_has_an_older_answer_gets_the_new_one(
    client_of: Callable[..., AsyncClient], cache: Cache
) -> None:
    client = client_of(tags=["n"])
    etag = (await client.get("/x/t/n")).headers["etag"]
    await cache.invalidate(tags=["n"])
    answer = await client.get("/x/t/n", headers={"If-None-Match": etag})

    assert answer.status_code == 200
    assert answer.headers["etag"] != etag


async def test_an_etag_of_the_endpoints_own_stays(client_of: Callable[..., AsyncClient]) -> None:
    async def tagged(response: Response) -> dict[str, str]:
        response.headers["ETag"] = '"7"'
        return {}

    client = client_of(endpoint=tagged)
    for _ in range(2):
        assert (await client.get("/x/t/n")).headers["etag"] == '"7"'
    answer = await client.get("/x/t/n", headers={"If-None-Match": '"7"'})
    assert answer.status_code == 304


async def test_who_passes_the_cache_by_is_spared_the_body_too(
    client_of: Callable[..., AsyncClient],
) -> None:
    """And no cache on the way may give the answer to anybody else."""

    async def get() -> str:
        return "the same"

    client = client_of(endpoint=get, max_age=10)
    credentials = {"X-API-Key": "key"}
    answer = await client.get("/x/t/n", headers=credentials)
    again = {**credentials, "If-None-Match": answer.headers["etag"]}

    assert answer.headers["cache-control"] == "private, no-cache"
    assert (await client.get("/x/t/n", headers=again)).status_code == 304


async def test_what_an_answer_does_besides_is_done_for_who_knows_it(
    client_of: Callable[..., AsyncClient],
) -> None:
    done: list[bool] = []

    async def do() -> None:
        done.append(True)

    async def get() -> Response:
        return Response("x", headers={"ETag": '"1"'}, background=BackgroundTask(do))

    client = client_of(endpoint=get)
    for _ in range(2):
        await client.get("/x/t/n", headers={"If-None-Match": '"1"'})

    assert done == [True, True]


def with_cookie(number: int) -> Response:
    response = Response(str(number))
    response.set_cookie("session", "x")
    return response


async def nothing() -> None:
    pass


@pytest.mark.parametrize(
    "answer",
    [
        with_cookie,
        lambda number: Response(str(number), status_code=202),
        lambda number: Response(str(number), headers={"Cache-Control": "no-store"}),
        lambda number: Response(str(number), headers={"Cache-Control": "private, max-age=5"}),
        lambda number: Response(str(number), background=BackgroundTask(nothing)),
        lambda number: StreamingResponse(iter([str(number)])),
        lambda number: Response(str(number), headers={"Vary": "Accept-Language"}),
    ],
    ids=["cookie", "202", "no-store", "private", "background", "stream", "vary"],
)
async def test_what_is_not_for_everyone_is_not_kept(
    client_of: Callable[..., AsyncClient], counter: Counter, answer: Callable[[int], Response]
) -> None:
    async def endpoint() -> Response:
        return answer(counter()["call"])

    client = client_of(endpoint=endpoint)
    assert [(await client.get("/x/t/n")).text for _ in range(3)] == ["1", "2", "3"]


async def test_answers_that_are_not_kept_do_not_wait_for_each_other(
    client_of: Callable[..., AsyncClient],
) -> None:
    """But for the first, which the others wait for: nobody knows yet what becomes of it."""
    all_others = asyncio.Barrier(19)
    calls = count(1)

    async def endpoint() -> Response:
        if next(calls) > 1:
            await all_others.wait()
        else:
            for _ in range(1000):  # turns of the loop, for the others to come
                await asyncio.sleep(0)
        return Response("x", headers={"Cache-Control": "no-store"})

    client = client_of(endpoint=endpoint)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(client.get("/x/t/n") for _ in range(20)))

    assert next(calls) == 21


async def test_an_answer_is_forgotten_in_time(
    client_of: Callable[..., AsyncClient], counter: Counter
) -> None:
    client = client_of(ttl=0.05)
    await client.get("/x/t/n")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while counter.calls == 1:
            await asyncio.sleep(0.01)
            await client.get("/x/t/n")

    assert counter.calls == 2


async def test_errors_are_not_kept(client_of: Callable[..., AsyncClient], counter: Counter) -> None:
    async def fail() -> None:
        counter()
        raise RuntimeError

    client = client_of(endpoint=fail)
    for _ in range(3):
        assert (await client.get("/x/t/n")).status_code == 500
    assert counter.calls == 3


async def test_the_wrong_router_is_named(fresh_app: FastAPI, database: Database) -> None:
    """A rule that nobody follows must not go unnoticed."""
    router = APIRouter()
    router.get("/n", dependencies=[cached_response()])(nothing)
    fresh_app.include_router(router)
    async with connect(fresh_app, database) as client:
        assert (await client.get("/n")).status_code == 500

    with pytest.raises(TypeError, match="route_class=CachedRoute"):
        await cached_response().dependency(Request({"type": "http"}))


async def of_the_language(accept_language: Annotated[str, Header()]) -> None: ...


def ask_who_calls(request: Request) -> str | None:
    return request.headers.get("x-token")


async def of_the_cookie(session: Annotated[str, Cookie()]) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "options", "fault"),
    [
        (of_the_language, {}, "add it to vary"),
        (of_the_cookie, {}, "identity"),
        (nothing, {"dependencies": [ApiKey]}, "identity"),
        (nothing, {"dependencies": [Depends(ask_who_calls)]}, "shared=True"),
        (nothing, {"methods": ["POST"]}, "only responses to GET"),
    ],
)
def test_a_route_whose_answers_cannot_be_shared_is_refused(
    router: APIRouter, endpoint: Any, options: dict[str, Any], fault: str
) -> None:
    """When the route is declared, not when somebody has read another's answer."""
    dependencies = [cached_response(), *options.pop("dependencies", [])]
    with pytest.raises(TypeError, match=fault):
        router.add_api_route("/n", endpoint, dependencies=dependencies, **options)
