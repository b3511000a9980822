"""Response caching: `dependencies=[cached_response(ttl=60, tags=("users",))]`.

The router needs `route_class=CachedRoute`. The cache stores the body and the headers of the
response. On a hit, neither the endpoint nor its dependencies run.

Only responses to GET with status 200 are cached. A response is not cached if it sets a cookie, if
its Cache-Control is `no-store` or `private`, or if it starts a background task.

A request with credentials (Authorization, Cookie or X-API-Key) bypasses the cache, unless the
policy has an `identity`.
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

# `CachedRoute` adds these keys to the scope of a request.
POLICY_SCOPE_KEY = "response_cache_policy"
PATH_SCOPE_KEY = "cached_path"

_OK, _NOT_MODIFIED = 200, 304
# These dependencies read only the `state` of the request, which does not depend on the caller.
_STATE_ONLY_DEPENDENCIES = (get_app_settings, get_cache, get_read_session)
_BYPASS_HEADERS = [(b"cache-control", b"private, no-cache")]
_HEADERS_OF_304 = frozenset({b"cache-control", b"content-location", b"etag", b"expires", b"vary"})


def cached_response(
    *,
    ttl: float | None = None,
    tags: Sequence[str] = (),
    vary: Sequence[str] = (),
    identity: Callable[[HTTPConnection], str | None] | None = None,
    max_age: int = 0,
    shared: bool = False,
) -> Any:
    """Cache the responses of an endpoint for `ttl` seconds (default: CACHE_TTL_SECONDS).

    - `tags` may contain path parameters: `"user:{user_id}"`.
    - `vary` lists the request headers that the response depends on.
    - `identity` returns the verified caller of a request. Each caller then has a separate cached
      response. If it returns None, the request bypasses the cache.
    - `max_age` is how long clients may reuse the response without a request, in seconds. With 0,
      they revalidate it each time, and receive 304 if it has not changed.
    - `shared=True` declares that the response is the same for every caller, although a dependency
      takes the request.
    """
    return Depends(ResponsePolicy(ttl, tuple(tags), tuple(vary), identity, max_age, shared))


@dataclass(frozen=True)
class ResponsePolicy:
    """The options of a `cached_response()`. FastAPI calls it as a dependency of the route."""

    ttl: float | None
    tags: tuple[str, ...]
    vary: tuple[str, ...]
    identity: Callable[[HTTPConnection], str | None] | None
    max_age: int
    shared: bool

    async def __call__(self, request: Request) -> None:
        if request.scope.get(POLICY_SCOPE_KEY) != self:
            raise TypeError(
                "cached_response() works only in the `dependencies` of a route whose router is an"
                " `APIRouter(route_class=CachedRoute)`."
            )


class CachedRoute(APIRoute):
    """A route that caches its responses if its dependencies include a `cached_response()`."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        for depends in self.dependencies:
            if isinstance(depends.dependency, ResponsePolicy):
                self.responses.setdefault(
                    304, {"description": "Not modified: the `ETag` in `If-None-Match` is current."}
                )
                return RouteCache(depends.dependency, self).wrap(handler)
        return handler


class RouteCache:
    """Caches the responses of a route. Raises TypeError if its policy is not safe for the route."""

    def __init__(self, policy: ResponsePolicy, route: APIRoute) -> None:
        if route.methods != {"GET"}:
            raise TypeError(
                f"`{route.name}` declares {', '.join(sorted(route.methods or ()))}, but only GET"
                " responses can be cached. Remove cached_response() from this route."
            )
        self.policy = policy
        self.values: Policy[Response] = Policy(route.name, ResponseCodec(policy), ttl=policy.ttl)
        self.headers = _cache_headers(policy)
        dependants = list(walk(route.dependant))
        _check_policy(route.name, policy, dependants)
        # An endpoint that takes the request may put its query and its host into the response.
        self.reads_request = any(map(_takes_request, dependants))
        self.reads_query = self.reads_request or any(
            dependant.query_params for dependant in dependants
        )
        # Part of the key: a release with a different response model ignores old cached responses.
        self.schema = digest(to_json(TypeAdapter(route.response_model).json_schema()))[:8]
        hints = hints_of(route.endpoint)
        self._parameters = {
            name: TypeAdapter[Any](hints.get(name, str)) for name in route.param_convertors
        }

    def wrap(self, handler: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            request.scope[POLICY_SCOPE_KEY] = self.policy
            cache = current_cache()
            path = self._path(request.scope)
            if cache is None or path is None or (key := path.cache_key(request.scope)) is None:
                response = _with_headers(await handler(request), _BYPASS_HEADERS)
                return apply_if_none_match(response, request.scope)

            async def compute() -> Response:
                return _with_headers(await handler(request), self.headers)

            response = await cache.fetch(self.values, key, path.tags, compute)
            request.scope[PATH_SCOPE_KEY] = path
            return apply_if_none_match(response, request.scope)

        return handle

    def _path(self, scope: Scope) -> "CachedPath | None":
        """Return the path with normalized parameters: a UUID can be written in several ways."""
        try:
            values = {
                name: _canonical(self._parameters[name].validate_python(value), value)
                for name, value in scope["path_params"].items()
            }
        except ValidationError:
            return None  # FastAPI responds with the validation error
        template = route_template(scope)
        tags = tuple(tag.format_map(values) for tag in self.policy.tags)
        return CachedPath(self, f"response:{self.schema}:{template.format_map(values)}", tags)


@dataclass(frozen=True, slots=True)
class CachedPath:
    """A path with its parameters. Its responses have one cache key per query, caller and so on."""

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
            key = f"{key}~{digest(caller.encode())}"  # a digest, because it may be a secret token
        elif any(name in CREDENTIAL_HEADERS for name, _ in scope["headers"]):
            return None
        if policy.vary:
            headers = HTTPConnection(scope).headers
            key = f"{key}~{digest(to_json([headers.get(name) for name in policy.vary]))}"
        return shorten(key)


class ResponseCodec:
    """Serializes a response as a JSON list of its headers, a newline and the body."""

    def __init__(self, policy: ResponsePolicy) -> None:
        self.forbidden = (b"no-store",) if policy.identity else (b"no-store", b"private")
        self.vary = {*CREDENTIAL_HEADERS, *(name.lower().encode() for name in policy.vary)}

    def encode(self, value: Response) -> bytes | None:
        body = getattr(value, "body", None)  # a StreamingResponse has no body
        if (
            body is None
            or value.status_code != _OK
            or value.background is not None
            or _header_tokens(value, b"set-cookie")
            or any(
                token.startswith(self.forbidden)
                for token in _header_tokens(value, b"cache-control")
            )
            or not self.vary.issuperset(_header_tokens(value, b"vary"))  # not in the key
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
    """A response with precomputed headers."""

    def __init__(self, body: bytes, headers: Headers, status_code: int = _OK) -> None:
        self.body = body
        self.raw_headers = headers
        self.status_code = status_code
        self.background = None


def apply_if_none_match(response: Response, scope: Scope) -> Response:
    """Return 304 if `If-None-Match` contains the ETag of the response (RFC 9110, 13.1.2)."""
    given = [value for name, value in scope["headers"] if name == b"if-none-match"]
    if not given or response.status_code != _OK:
        return response
    response_headers = dict(response.raw_headers)
    if response.background is not None or b"set-cookie" in response_headers:
        return response  # a 304 would lose them
    etag = response_headers.get(b"etag", b"").removeprefix(b"W/")
    known = [tag.strip().removeprefix(b"W/") for tag in b",".join(given).split(b",")]
    if not etag or (etag not in known and b"*" not in known):
        return response
    headers = [(name, value) for name, value in response.raw_headers if name in _HEADERS_OF_304]
    return RawResponse(b"", headers, _NOT_MODIFIED)


def _cache_headers(policy: ResponsePolicy) -> Headers:
    scope = "private" if policy.identity else "public"
    value = f"{scope}, max-age={policy.max_age}" if policy.max_age else "no-cache"
    headers = [(b"cache-control", value.encode())]
    vary = [name.encode() for name in policy.vary]
    if policy.max_age and not policy.identity:
        vary += CREDENTIAL_HEADERS  # requests with these bypass the cache: responses may differ
    return [*headers, (b"vary", b", ".join(vary))] if vary else headers


def _with_headers(response: Response, headers: Headers) -> Response:
    if response.status_code == _OK:
        # Several Vary headers add up. For any other header, the value from the endpoint wins.
        given = {name for name, _ in response.raw_headers} - {b"vary"}
        added = [(name, value) for name, value in headers if name not in given]
        if b"etag" not in given and (body := getattr(response, "body", None)):
            added.append((b"etag", f'"{digest(body)}"'.encode()))
        response.raw_headers = [*response.raw_headers, *added]
    return response


def _canonical(value: Any, given: Any) -> str:
    try:
        return format_value(value)
    except TypeError:  # a type without a canonical form, such as an IP address
        return format_value(given)


def _check_policy(name: str, policy: ResponsePolicy, dependants: Sequence[Dependant]) -> None:
    calls: list[Any] = [dependant.call for dependant in dependants]
    reads_caller = any(isinstance(call, SecurityBase) for call in calls)
    reads_caller = reads_caller or any(dependant.cookie_params for dependant in dependants)
    if reads_caller and policy.identity is None:
        raise TypeError(
            f"`{name}` reads credentials or cookies, so its response may depend on the caller. Pass"
            " `identity=` to cached_response(): a function that returns the verified caller."
        )
    takes_request = [dependant.call for dependant in dependants[1:] if _takes_request(dependant)]
    if takes_request and not (policy.shared or policy.identity):
        dependency = getattr(takes_request[0], "__name__", takes_request[0])
        raise TypeError(
            f"The dependency `{dependency}` of `{name}` takes the request, so the response may"
            " depend on the caller. Pass `identity=` to cached_response(), or `shared=True` if the"
            " response is the same for every caller."
        )
    varied = {header.lower() for header in policy.vary}
    for header in chain.from_iterable(dependant.header_params for dependant in dependants):
        if header.alias.lower() not in varied:
            raise TypeError(
                f"`{name}` reads the request header `{header.alias}`, so its response may depend on"
                f' it. Add the header to `vary`: cached_response(vary=["{header.alias}"]).'
            )


def _takes_request(dependant: Dependant) -> bool:
    if isinstance(dependant.call, (ResponsePolicy, SecurityBase)):
        return False
    if dependant.call in _STATE_ONLY_DEPENDENCIES:
        return False
    return bool(dependant.request_param_name or dependant.http_connection_param_name)


def _header_tokens(response: Response, header: bytes) -> list[bytes]:
    """Return the comma-separated tokens of a header, which may occur several times."""
    values = [value for name, value in response.raw_headers if name == header]
    return [token.strip().lower() for value in values for token in value.split(b",")]
