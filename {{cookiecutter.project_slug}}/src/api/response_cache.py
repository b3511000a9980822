"""Whole answers from the cache: `dependencies=[cached_response(ttl=60, tags=("items",))]`.

The router needs `route_class=CachedRoute`. What is kept is the finished answer, bytes and headers;
once the path is known, a hit is given out before routing, and runs no dependency. Only a 200 to a
GET is kept, never one that sets a cookie, says `no-store` or `private`, or has work left to do.

A request with credentials (Authorization, Cookie, X-API-Key) passes the cache by, unless `identity`
says whose answer it is.
"""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from src.api.deps import get_app_settings, get_read_session
from src.api.metrics import route_template
from src.cache import Cache, Policy, current_cache, get_cache, use_cache
from src.cache.engine.keys import MAX_LENGTH, digest, encode, hints_of, plain, shorten

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Headers = list[tuple[bytes, bytes]]

MAX_KNOWN_PATHS = 10_000

_CREDENTIALS = (b"authorization", b"cookie", b"x-api-key")
# What takes a request for its `state` alone, which says nothing about who asks for what.
_STATE_ONLY = (get_app_settings, get_cache, get_read_session)
_KEPT_BY = "response_kept_by"
_UNKEPT = [(b"cache-control", b"private, no-cache")]  # an answer to somebody, who may ask again
_IN_304 = frozenset({b"cache-control", b"content-location", b"etag", b"expires", b"vary"})


def cached_response(
    *,
    ttl: float | None = None,
    tags: Sequence[str] = (),
    vary: Sequence[str] = (),
    identity: Callable[[HTTPConnection], str | None] | None = None,
    max_age: int = 0,
    shared: bool = False,
) -> Any:
    """Keep the answers of an endpoint for `ttl` seconds (CACHE_TTL_SECONDS unless given).

    `tags` may name path parameters: `"item:{item_id}"`. `vary` names the request headers that the
    answer depends on. `identity` tells from a request whose answer it is, None if nobody's: then it
    is not kept. Clients may reuse an answer for `max_age` seconds without asking; with 0 they ask
    each time, and get 304 if it is still the same. `shared` says that dependencies which take the
    request do not ask who calls.
    """
    return Depends(Rule(ttl, tuple(tags), tuple(vary), identity, max_age, shared))


@dataclass(frozen=True)
class Rule:
    """What a `cached_response()` asks for; FastAPI calls it, as it does any dependency."""

    ttl: float | None
    tags: tuple[str, ...]
    vary: tuple[str, ...]
    identity: Callable[[HTTPConnection], str | None] | None
    max_age: int
    shared: bool

    async def __call__(self, request: Request) -> None:
        if request.scope.get(_KEPT_BY) != self:
            raise TypeError(
                "cached_response() belongs to a route, of APIRouter(route_class=CachedRoute)"
            )


class CachedRoute(APIRoute):
    """Keeps its answers if it has a `cached_response()` among its dependencies."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        for depends in self.dependencies:
            if isinstance(depends.dependency, Rule):
                self.responses.setdefault(304, {"description": "The client has this answer."})
                return Keeper(depends.dependency, self).wrap(handler)
        return handler


class Keeper:
    """Keeps the answers of one route.

    Raises TypeError for a route whose answers cannot be shared as its rule has it.
    """

    def __init__(self, rule: Rule, route: APIRoute) -> None:
        if route.methods != {"GET"}:
            raise TypeError(f"{route.name}: only answers to GET are kept")
        self.rule = rule
        self.policy = Policy(route.name, _Answers(rule), ttl=rule.ttl)
        self.headers = self._common_headers()
        dependants = list(_walk(route.dependant))
        self._refuse_private(route.name, dependants)
        # Who takes the whole request may read its query and its host, and say so in the answer.
        self.reads_request = any(map(_takes_request, dependants))
        self.reads_query = self.reads_request or any(each.query_params for each in dependants)
        # A release that answers in another form does not give out what the one before has kept.
        self.form = digest(to_json(TypeAdapter(route.response_model).json_schema()))[:8]
        hints = hints_of(route.endpoint)
        self._parameters = {
            name: TypeAdapter[Any](hints.get(name, str)) for name in route.param_convertors
        }

    def _common_headers(self) -> Headers:
        scope = "private" if self.rule.identity else "public"
        value = f"{scope}, max-age={self.rule.max_age}" if self.rule.max_age else "no-cache"
        headers = [(b"cache-control", value.encode())]
        vary = [name.encode() for name in self.rule.vary]
        if self.rule.max_age and not self.rule.identity:
            vary += _CREDENTIALS  # with which the cache is passed by, so that the answer may differ
        return [*headers, (b"vary", b", ".join(vary))] if vary else headers

    def _refuse_private(self, name: str, dependants: Sequence[Dependant]) -> None:
        calls: list[Any] = [each.call for each in dependants]
        asks_who = any(isinstance(call, SecurityBase) for call in calls)
        if self.rule.identity is None and (asks_who or any(d.cookie_params for d in dependants)):
            raise TypeError(f"{name} asks who calls: `identity` must tell whose its answers are")
        if not (self.rule.shared or self.rule.identity) and any(
            map(_takes_request, dependants[1:])
        ):
            raise TypeError(
                f"{name} has a dependency that takes the request, and may ask who calls:"
                " give `identity`, or `shared=True` if the answer is for everyone"
            )
        varied = {header.lower() for header in self.rule.vary}
        for header in chain.from_iterable(each.header_params for each in dependants):
            if header.alias.lower() not in varied:
                raise TypeError(f"{name} depends on the header {header.alias}: add it to vary")

    def wrap(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            request.scope[_KEPT_BY] = self.rule
            cache = current_cache()
            path = self._locate(request.scope)
            if cache is None or path is None or (place := path.place(request.scope)) is None:
                response = self._dress(await handler(request), _UNKEPT)
                return _unless_known(response, request.scope)

            async def compute() -> Response:
                return self._dress(await handler(request), self.headers)

            response = await cache.fetch(self.policy, *place, compute)
            _remember(request.scope, path)
            return _unless_known(response, request.scope)

        return answer

    def _locate(self, scope: Scope) -> "KnownPath | None":
        """Spell the path as the service itself would: a UUID may be written in several ways."""
        try:
            values = {
                name: _spell(self._parameters[name].validate_python(value), value)
                for name, value in scope["path_params"].items()
            }
        except ValidationError:
            return None  # for FastAPI to say what is wrong
        template = route_template(scope)
        return KnownPath(
            self,
            f"response:{self.form}:{template.format_map(values)}",
            tuple(tag.format_map(values) for tag in self.rule.tags),
            {name: scope[name] for name in ("fastapi", "route") if name in scope},
        )

    def _dress(self, response: Response, headers: Headers) -> Response:
        if response.status_code == 200:  # noqa: PLR2004 - OK
            given = {name for name, _ in response.raw_headers} - {b"vary"}  # which adds up
            added = [(name, value) for name, value in headers if name not in given]
            if b"etag" not in given and (body := getattr(response, "body", None)):
                added.append((b"etag", f'"{digest(body)}"'.encode()))
            response.raw_headers = [*response.raw_headers, *added]
        return response


def _spell(value: Any, given: Any) -> str:
    try:
        return plain(value)
    except TypeError:  # an IP address, say
        return plain(given)


class KnownPath(NamedTuple):
    """A path that is known to lead to a route, and what is stored of it."""

    keeper: Keeper
    key: str
    tags: tuple[str, ...]
    scope: dict[str, Any]

    def place(self, scope: Scope) -> tuple[str, tuple[str, ...]] | None:
        """Return the key and the tags of a request's answer; None if it is not to be kept."""
        rule = self.keeper.rule
        key = self.key
        if self.keeper.reads_query and scope["query_string"]:
            query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            key = f"{key}?{urlencode(sorted(query, key=itemgetter(0)))}"
        if self.keeper.reads_request:
            key = f"{key}@{scope['scheme']}:{encode(HTTPConnection(scope).headers.get('host'))}"
        if rule.identity is not None:
            whose = rule.identity(HTTPConnection(scope))
            if whose is None:
                return None
            key = f"{key}~{digest(whose.encode())}"  # it may be a token
        elif any(name in _CREDENTIALS for name, _ in scope["headers"]):
            return None
        if rule.vary:
            headers = HTTPConnection(scope).headers
            varied = [headers.get(name) for name in rule.vary]
            key = f"{key}~{digest(to_json(varied))}"
        return shorten(key), self.tags


class CacheMiddleware:
    """Lets `@cached` find the cache, and gives out what is kept for a path that is known."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.known: dict[str, KnownPath] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["known_paths"] = self.known
        # There is none while the lifespan runs, nor for a client that does without the lifespan.
        cache: Cache | None = scope.get("state", {}).get("cache")
        if cache is None:
            await self.app(scope, receive, send)
            return
        response = await self._kept(cache, scope)
        if response is not None:
            await response(scope, receive, send)
            return
        with use_cache(cache):
            await self.app(scope, receive, send)

    async def _kept(self, cache: Cache, scope: Scope) -> Response | None:
        path = self.known.get(scope["path"])
        if path is None or scope.get("method") != "GET" or (place := path.place(scope)) is None:
            return None
        policy = path.keeper.policy
        response = await cache.get(policy, *place)
        if response is None:
            return None
        scope.update(path.scope)  # which the metrics read
        return _unless_known(response, scope)


def _remember(scope: Scope, path: KnownPath) -> None:
    if len(scope["path"]) > MAX_LENGTH:
        return  # whoever calls may choose it: thousands of long ones would fill the memory
    known: dict[str, KnownPath] = scope["known_paths"]
    if len(known) >= MAX_KNOWN_PATHS:
        known.clear()
    known[scope["path"]] = path


def _unless_known(response: Response, scope: Scope) -> Response:
    """Answer 304 if the client has just this answer already (RFC 9110, 13.1.2)."""
    given = [value for name, value in scope["headers"] if name == b"if-none-match"]
    if not given or response.status_code != 200:  # noqa: PLR2004 - OK
        return response
    headers_of = dict(response.raw_headers)
    if response.background is not None or b"set-cookie" in headers_of:
        return response  # it does more than tell what is known
    etag = headers_of.get(b"etag", b"").removeprefix(b"W/")
    tags = [tag.strip().removeprefix(b"W/") for tag in b",".join(given).split(b",")]
    if not etag or (etag not in tags and b"*" not in tags):
        return response
    headers = [(name, value) for name, value in response.raw_headers if name in _IN_304]
    return _Ready(b"", headers, status_code=304)


class _Ready(Response):
    """An answer whose headers need no making."""

    def __init__(self, body: bytes, headers: Headers, status_code: int = 200) -> None:
        self.body = body
        self.raw_headers = headers
        self.status_code = status_code
        self.background = None


class _Answers:
    """Answers as bytes: a line of JSON with the headers, then the body."""

    def __init__(self, rule: Rule) -> None:
        self.forbidden = (b"no-store",) if rule.identity else (b"no-store", b"private")
        self.vary = {*_CREDENTIALS, *(name.lower().encode() for name in rule.vary)}

    def encode(self, value: Response) -> bytes | None:
        control = _words_of(value, b"cache-control")
        body = getattr(value, "body", None)  # a stream has none
        if (
            body is None
            or value.status_code != 200  # noqa: PLR2004 - OK
            or value.background is not None
            or _words_of(value, b"set-cookie")
            or any(word.startswith(self.forbidden) for word in control)
            or not self.vary.issuperset(_words_of(value, b"vary"))  # what the key does not know of
        ):
            return None
        head = [
            [name.decode("latin-1"), text.decode("latin-1")] for name, text in value.raw_headers
        ]
        return to_json(head) + b"\n" + bytes(body)

    def decode(self, data: bytes) -> Response:
        head, _, body = data.partition(b"\n")
        headers = [
            (name.encode("latin-1"), text.encode("latin-1")) for name, text in from_json(head)
        ]
        return _Ready(body, headers)


def _takes_request(dependant: Dependant) -> bool:
    if dependant.call in _STATE_ONLY or isinstance(dependant.call, (Rule, SecurityBase)):
        return False
    return bool(dependant.request_param_name or dependant.http_connection_param_name)


def _words_of(response: Response, header: bytes) -> list[bytes]:
    """Return what stands between the commas of a header, which may be there several times."""
    values = [value for name, value in response.raw_headers if name == header]
    return [word.strip().lower() for value in values for word in value.split(b",")]


def _walk(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _walk(each)
