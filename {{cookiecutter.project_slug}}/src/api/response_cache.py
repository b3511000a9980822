"""Cached responses: `dependencies=[cached_response(ttl=60, tags=("users",))]`.

The router needs `route_class=CachedRoute`. The finished response is stored, bytes and headers; a
hit runs no dependency. Only a 200 to a GET is stored, never one that sets a cookie, says `no-store`
or `private`, or has a background task.

A request with credentials (Authorization, Cookie, X-API-Key) bypasses the cache, unless `identity`
says who calls.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import HTTPConnection
from starlette.types import Scope

from src.api.deps import CREDENTIAL_HEADERS, get_app_settings, get_read_session
from src.api.metrics import route_template
from src.api.openapi import walk
from src.cache import current_cache, get_cache
from src.cache.engine.keys import digest, format_value, hints_of, shorten
from src.cache.engine.policy import Policy

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Headers = list[tuple[bytes, bytes]]

POLICY = "response_cache_policy"  # where a request's scope has what cached the response,
PATH = "cached_path"  # and as what

_OK, _NOT_MODIFIED = 200, 304
# What takes a request for its `state` alone, which says nothing about who asks for what.
_STATE_ONLY = (get_app_settings, get_cache, get_read_session)
_BYPASS_HEADERS = [(b"cache-control", b"private, no-cache")]
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
    """Cache the responses of an endpoint for `ttl` seconds (CACHE_TTL_SECONDS unless given).

    `tags` may name path parameters: `"user:{user_id}"`. `vary` names the request headers that the
    response depends on. `identity` returns who sent a request; the response is for this caller
    alone, and not cached if it is None. Clients may reuse a response for `max_age` seconds without
    asking; with 0 they ask each time, and get 304 if it is unchanged. `shared` says that
    dependencies which take the request do not ask who calls.
    """
    return Depends(ResponsePolicy(ttl, tuple(tags), tuple(vary), identity, max_age, shared))


@dataclass(frozen=True)
class ResponsePolicy:
    """The options of a `cached_response()`; FastAPI calls it, as it does any dependency."""

    ttl: float | None
    tags: tuple[str, ...]
    vary: tuple[str, ...]
    identity: Callable[[HTTPConnection], str | None] | None
    max_age: int
    shared: bool

    async def __call__(self, request: Request) -> None:
        if request.scope.get(POLICY) != self:
            raise TypeError(
                "cached_response() belongs to a route, of APIRouter(route_class=CachedRoute)"
            )


class CachedRoute(APIRoute):
    """Caches its responses if it has a `cached_response()` among its dependencies."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        for depends in self.dependencies:
            if isinstance(depends.dependency, ResponsePolicy):
                self.responses.setdefault(304, {"description": "The client has this response."})
                return RouteCache(depends.dependency, self).wrap(handler)
        return handler


class RouteCache:
    """Caches the responses of a route. Raises TypeError if its policy must not share them."""

    def __init__(self, policy: ResponsePolicy, route: APIRoute) -> None:
        if route.methods != {"GET"}:
            raise TypeError(f"{route.name}: only responses to GET are cached")
        self.policy = policy
        self.values: Policy[Response] = Policy(route.name, ResponseCodec(policy), ttl=policy.ttl)
        self.headers = _cache_headers(policy)
        dependants = list(walk(route.dependant))
        _refuse_private(route.name, policy, dependants)
        # What takes the whole request may read its query and its host, and return them.
        self.reads_request = any(map(_takes_request, dependants))
        self.reads_query = self.reads_request or any(each.query_params for each in dependants)
        # A release with another response model does not return what the one before has cached.
        self.schema = digest(to_json(TypeAdapter(route.response_model).json_schema()))[:8]
        hints = hints_of(route.endpoint)
        self._parameters = {
            name: TypeAdapter[Any](hints.get(name, str)) for name in route.param_convertors
        }

    def wrap(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            request.scope[POLICY] = self.policy
            cache = current_cache()
            path = self._path(request.scope)
            if cache is None or path is None or (key := path.cache_key(request.scope)) is None:
                response = _with_headers(await handler(request), _BYPASS_HEADERS)
                return not_modified_or(response, request.scope)

            async def compute() -> Response:
                return _with_headers(await handler(request), self.headers)

            response = await cache.fetch(self.values, key, path.tags, compute)
            request.scope[PATH] = path
            return not_modified_or(response, request.scope)

        return handle

    def _path(self, scope: Scope) -> "CachedPath | None":
        """Write the path as the service itself does: a UUID may be spelled in several ways."""
        try:
            values = {
                name: _canonical(self._parameters[name].validate_python(value), value)
                for name, value in scope["path_params"].items()
            }
        except ValidationError:
            return None  # FastAPI returns the error
        template = route_template(scope)
        tags = tuple(tag.format_map(values) for tag in self.policy.tags)
        return CachedPath(self, f"response:{self.schema}:{template.format_map(values)}", tags)


@dataclass(frozen=True, slots=True)
class CachedPath:
    """A path of a route with its parameters; their responses have one key for each variant."""

    route: RouteCache
    key: str
    tags: tuple[str, ...]

    def cache_key(self, scope: Scope) -> str | None:
        """Return the key of the response to a request; None if it bypasses the cache."""
        policy = self.route.policy
        key = self.key
        if self.route.reads_query and scope["query_string"]:
            query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            key = f"{key}?{urlencode(sorted(query, key=itemgetter(0)))}"
        if self.route.reads_request:
            host = format_value(HTTPConnection(scope).headers.get("host"))
            key = f"{key}@{scope['scheme']}:{host}"
        if policy.identity is not None:
            caller = policy.identity(HTTPConnection(scope))
            if caller is None:
                return None
            key = f"{key}~{digest(caller.encode())}"  # it may be a token
        elif any(name in CREDENTIAL_HEADERS for name, _ in scope["headers"]):
            return None
        if policy.vary:
            headers = HTTPConnection(scope).headers
            key = f"{key}~{digest(to_json([headers.get(name) for name in policy.vary]))}"
        return shorten(key)


class ResponseCodec:
    """Responses as bytes: a line of JSON with the headers, then the body."""

    def __init__(self, policy: ResponsePolicy) -> None:
        self.forbidden = (b"no-store",) if policy.identity else (b"no-store", b"private")
        self.vary = {*CREDENTIAL_HEADERS, *(name.lower().encode() for name in policy.vary)}

    def encode(self, value: Response) -> bytes | None:
        body = getattr(value, "body", None)  # a stream has none
        if (
            body is None
            or value.status_code != _OK
            or value.background is not None
            or _words_of(value, b"set-cookie")
            or any(word.startswith(self.forbidden) for word in _words_of(value, b"cache-control"))
            or not self.vary.issuperset(_words_of(value, b"vary"))  # what the key does not have
        ):
            return None
        headers = [
            (name.decode("latin-1"), text.decode("latin-1")) for name, text in value.raw_headers
        ]
        return to_json(headers) + b"\n" + bytes(body)

    def decode(self, data: bytes) -> Response:
        head, _, body = data.partition(b"\n")
        headers = [
            (name.encode("latin-1"), text.encode("latin-1")) for name, text in from_json(head)
        ]
        return RawResponse(body, headers)


class RawResponse(Response):
    """A response with finished headers."""

    def __init__(self, body: bytes, headers: Headers, status_code: int = _OK) -> None:
        self.body = body
        self.raw_headers = headers
        self.status_code = status_code
        self.background = None


def not_modified_or(response: Response, scope: Scope) -> Response:
    """Return 304 if the client has just this response already (RFC 9110, 13.1.2)."""
    given = [value for name, value in scope["headers"] if name == b"if-none-match"]
    if not given or response.status_code != _OK:
        return response
    headers_of = dict(response.raw_headers)
    if response.background is not None or b"set-cookie" in headers_of:
        return response  # it does more than the client knows
    etag = headers_of.get(b"etag", b"").removeprefix(b"W/")
    known = [tag.strip().removeprefix(b"W/") for tag in b",".join(given).split(b",")]
    if not etag or (etag not in known and b"*" not in known):
        return response
    headers = [(name, value) for name, value in response.raw_headers if name in _IN_304]
    return RawResponse(b"", headers, _NOT_MODIFIED)


def _cache_headers(policy: ResponsePolicy) -> Headers:
    scope = "private" if policy.identity else "public"
    value = f"{scope}, max-age={policy.max_age}" if policy.max_age else "no-cache"
    headers = [(b"cache-control", value.encode())]
    vary = [name.encode() for name in policy.vary]
    if policy.max_age and not policy.identity:
        vary += CREDENTIAL_HEADERS  # which bypass the cache, so that the response may differ
    return [*headers, (b"vary", b", ".join(vary))] if vary else headers


def _with_headers(response: Response, headers: Headers) -> Response:
    if response.status_code == _OK:
        given = {name for name, _ in response.raw_headers} - {b"vary"}  # which adds up
        added = [(name, value) for name, value in headers if name not in given]
        if b"etag" not in given and (body := getattr(response, "body", None)):
            added.append((b"etag", f'"{digest(body)}"'.encode()))
        response.raw_headers = [*response.raw_headers, *added]
    return response


def _canonical(value: Any, given: Any) -> str:
    try:
        return format_value(value)
    except TypeError:  # an IP address, say
        return format_value(given)


def _refuse_private(name: str, policy: ResponsePolicy, dependants: Sequence[Dependant]) -> None:
    calls: list[Any] = [each.call for each in dependants]
    asks_who = any(isinstance(call, SecurityBase) for call in calls)
    asks_who = asks_who or any(each.cookie_params for each in dependants)
    if asks_who and policy.identity is None:
        raise TypeError(f"{name} asks who calls: `identity` must return the caller")
    takes_request = any(map(_takes_request, dependants[1:]))
    if takes_request and not (policy.shared or policy.identity):
        raise TypeError(
            f"{name} has a dependency that takes the request, and may ask who calls:"
            " give `identity`, or `shared=True` if the response is for everyone"
        )
    varied = {header.lower() for header in policy.vary}
    for header in chain.from_iterable(each.header_params for each in dependants):
        if header.alias.lower() not in varied:
            raise TypeError(f"{name} depends on the header {header.alias}: add it to vary")


def _takes_request(dependant: Dependant) -> bool:
    if dependant.call in _STATE_ONLY or isinstance(dependant.call, (ResponsePolicy, SecurityBase)):
        return False
    return bool(dependant.request_param_name or dependant.http_connection_param_name)


def _words_of(response: Response, header: bytes) -> list[bytes]:
    """Return what stands between the commas of a header, which may occur several times."""
    values = [value for name, value in response.raw_headers if name == header]
    return [word.strip().lower() for value in values for word in value.split(b",")]
