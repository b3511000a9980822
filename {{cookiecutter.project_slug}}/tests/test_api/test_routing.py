"""`RouteIndex` finds the same routes as FastAPI's router."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Form, Response
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.routing import route_template
from src.db.session import Database
from tests.fixtures.client import connect
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER")
VALUES = ("1", "x", "01976d7e-0000-7000-8000-000000000000", "a%0A", "a b", "")
LIVE = f"{API}/health/live"


async def nothing() -> None:
    pass


def paths(app: FastAPI) -> Iterator[str]:
    for route in iter_route_contexts(app.routes):
        template = getattr(route, "path_format", None) or ""
        for value in VALUES:
            path = "/".join(value if "{" in part else part for part in template.split("/"))
            yield from (path, f"{path}/", path.rstrip("/"), path.upper())


async def receive() -> Message:
    return {"type": "http.request", "body": b""}


async def call(entrance: ASGIApp, method: str, path: str, send: Send, **others: Any) -> None:
    scope: Scope = {
        "type": "http", "method": method, "path": path, "root_path": "", "headers": [],
        "query_string": b"", "scheme": "http", "http_version": "1.1",
        "state": {}, "server": ("test", 80), **others,
    }  # fmt: skip
    await entrance(scope, receive, send)


async def route(app: FastAPI, method: str, path: str, *, has_index: bool) -> Any:
    """Return which endpoint gets the request, with its parameters, or the response without one."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    entrance = app.router.middleware_stack if has_index else app.router.app
    scope: Scope = {}

    async def entered(given: Scope, receive: Receive, send: Send) -> None:
        nonlocal scope
        scope = given
        await entrance(given, receive, send)

    try:
        await call(entered, method, path, send, app=app)
    except (AssertionError, RuntimeError, HTTPException) as error:  # it lacks a state
        outcome: Any = type(error)
    else:
        outcome = sent[0]["status"], dict(sent[0]["headers"])
    return scope.get("endpoint"), scope.get("path_params"), route_template(scope), outcome


async def assert_equal(app: FastAPI, paths: Iterator[str] | list[str]) -> None:
    for path in dict.fromkeys(paths):
        for method in METHODS:
            found = await route(app, method, path, has_index=True)
            assert found == await route(app, method, path, has_index=False), (method, path)


async def test_each_path_has_the_same_route_and_parameters(app: FastAPI) -> None:
    await assert_equal(app, paths(app))


async def test_the_order_of_routes_decides(fresh_app: FastAPI) -> None:
    inner = APIRouter(prefix="/{kind}")
    inner.get("/{number:int}")(lambda: "int")
    inner.get("/{name}")(lambda: "name")
    inner.post("/fixed")(lambda: "fixed")
    outer = APIRouter(prefix="/things")
    outer.get("/a/fixed")(lambda: "before")
    outer.post("/{x}/{y}")(lambda: "post")
    outer.include_router(inner)
    outer.get("/a/later")(lambda: "hidden")
    outer.get("/{rest:path}")(lambda: "rest")
    fresh_app.include_router(outer)
    given = ["a/fixed", "b/fixed", "a/7", "a/-7", "a/later", "a/b/c", "", "a/", "7.5/x"]

    await assert_equal(fresh_app, [f"/things/{path}" for path in given])


class OwnRoute(APIRoute):
    def matches(self, scope: Scope) -> Any:
        return super().matches({**scope, "path": scope["path"].removesuffix(".json")})


async def test_other_routes_keep_their_place(fresh_app: FastAPI) -> None:
    form = APIRouter()

    @form.post("/place/form")
    async def submit(text: Annotated[str, Form()]) -> str:
        return text

    fresh_app.include_router(form)
    fresh_app.router.add_api_route(
        "/place/own", nothing, methods=["GET"], route_class_override=OwnRoute
    )
    fresh_app.router.routes.append(Mount("/place/mounted", PlainTextResponse("mounted")))
    fresh_app.add_api_route("/place/mounted/x", nothing, methods=["GET", "POST"])
    hosted = Router([Mount("/place/hosted", PlainTextResponse("hosted"))])
    fresh_app.router.routes.append(Host("test", hosted))
    fresh_app.add_api_route("/place/hosted", nothing)
    given = ["form", "own", "own.json", "mounted", "mounted/x", "hosted", "hosted/y", "other"]

    await assert_equal(fresh_app, [f"/place/{path}" for path in given])


async def test_routes_that_are_added_later_are_found(fresh_app: FastAPI) -> None:
    await assert_equal(fresh_app, ["/late"])
    fresh_app.add_api_route("/late", nothing)

    await assert_equal(fresh_app, ["/late"])
    assert (await route(fresh_app, "GET", "/late", has_index=True))[0] is nothing


async def test_routes_that_are_replaced_are_found(fresh_app: FastAPI) -> None:
    fresh_app.add_api_route("/old", nothing)
    await assert_equal(fresh_app, ["/old", "/new"])
    fresh_app.router.routes.pop()
    fresh_app.add_api_route("/new", nothing)

    await assert_equal(fresh_app, ["/old", "/new"])


async def test_other_methods_keep_their_place(fresh_app: FastAPI) -> None:
    fresh_app.mount("/purged", PlainTextResponse("mounted"))
    fresh_app.add_api_route("/purged/x", nothing, methods=["OTHER"])

    await assert_equal(fresh_app, ["/purged/x"])


async def test_a_prefix_of_the_server_is_removed(app: FastAPI, database: Database) -> None:
    client = connect(app, database, root_path="/prefix")

    assert (await client.get(f"/prefix{LIVE}")).status_code == 200
    assert (await client.get(f"/prefixed{LIVE}")).status_code == 404
    assert (await connect(app, database, root_path=LIVE).get(LIVE)).status_code == 404


async def test_a_found_route_needs_no_search(
    fresh_app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: object) -> None:
        raise AssertionError("The router compares the request with its routes.")

    monkeypatch.setattr(fresh_app.router, "app", search)
    client = connect(fresh_app, database)

    for path in (LIVE, NOTES):
        assert (await client.get(path)).status_code == 200


async def test_one_layer_of_the_service_handles_the_messages_of_a_response(app: FastAPI) -> None:
    """Each function between the endpoint's response and the server costs time twice per response."""
    layers: list[str] = []

    async def send(_: Message) -> None:
        frame = sys._getframe().f_back  # noqa: SLF001 - the callers
        while frame is not None and frame.f_code is not Response.__call__.__code__:
            layers.append(frame.f_globals["__name__"])
            frame = frame.f_back

    await call(app, "GET", LIVE, send=send)

    own = [name for name in layers if name.startswith("src.")]
    assert own == ["src.api.middleware"] * 2  # the head and the body
