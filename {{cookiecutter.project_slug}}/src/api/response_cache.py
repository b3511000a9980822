"""Response caching: `dependencies=[cached_response(ttl=60, tags=("users",))]`.

The router needs `route_class=CachedRoute`. The cache stores the body and the headers of the
response. A hit needs the same scopes as the endpoint, but neither the endpoint nor its dependencies
run. A route is therefore refused if another dependency may reject the request, or if the response
may depend on more than its cache key, such as the principal.

Only responses to GET with status 200 are cached. A response is not cached if it sets a cookie, if
its Cache-Control is `no-store` or `private`, or if it starts a background task.

If an endpoint allows anonymous callers, a request with credentials (Authorization, Cookie or
X-API-Key) bypasses the cache, unless the policy has an `identity`.
"""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, get_args
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security.base import SecurityBase
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.types import Scope

from src.api.auth import (
    Require,
    allows_anonymous,
    authenticate,
    find_principal,
    get_optional_principal,
    get_principal,
    principal_of,
    required_scopes,
    walk,
)
from src.api.deps import (
    CREDENTIAL_HEADERS,
    get_app_settings,
    get_database,
    get_expensive_read_session,
    get_read_session,
)
from src.api.routing import matched_route
from src.cache import current_cache, get_cache
from src.cache.engine.keys import (
    check_strings,
    digest,
    format_value,
    hints_of,
    parse_template,
    shorten,
)
from src.cache.engine.policy import Policy

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Headers = list[tuple[bytes, bytes]]

# `CachedRoute` adds these keys to the scope of a request.
POLICY_SCOPE_KEY = "response_cache_policy"
PATH_SCOPE_KEY = "cached_path"

_OK, _NOT_MODIFIED = 200, 304
_NOT_ON_A_CACHED_ROUTE = (
    "cached_response() works only in the `dependencies` of a route whose router is an"
    " `APIRouter(route_class=CachedRoute)`."
)
# These dependencies read only the `state` of the request, which does not depend on the caller.
_STATE_ONLY_DEPENDENCIES = (
    get_app_settings,
    get_cache,
    get_database,
    get_expensive_read_session,
    get_read_session,
)
_BYPASS_HEADERS = [(b"cache-control", b"private, no-cache")]
_HEADERS_OF_304 = frozenset({b"cache-control", b"content-location", b"etag", b"expires", b"vary"})


def by_principal(connection: HTTPConnection) -> str | None:
    """Return the principal with its scopes, which can change: for `identity=by_principal`."""
    principal = principal_of(connection)
    return f"{principal} {' '.join(sorted(principal.scopes))}" if principal else None


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
    - `identity` returns the verified caller of a request, such as `by_principal`. Each caller then
      has a separate cached response. If it returns None, the request bypasses the cache.
    - `max_age` is how long clients may reuse the response without a request, in seconds. With 0,
      they revalidate it each time, and receive 304 if it has not changed.
    - `shared=True` declares that the response is the same for every caller, although the endpoint
      or a dependency takes the request, and that no dependency has to run on a hit.
    """
    check_strings("cached_response()", tags=tags, vary=vary)
    if inspect.iscoroutinefunction(identity):
        raise TypeError(
            f"`identity={identity.__name__}` must not be `async`: it runs before a hit is returned."
            " It must do no I/O; it can verify a signed token, for example."
        )
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
            raise TypeError(_NOT_ON_A_CACHED_ROUTE)


class CachedRoute(APIRoute):
    """A route that caches its responses if its dependencies include a `cached_response()`."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        policy = _policy_of(self)
        if policy is None:
            return handler
        _check_policy(policy, self, is_complete=False)
        self.responses.setdefault(
            304, {"description": "Not modified: the `ETag` in `If-None-Match` is current."}
        )
        cache: RouteCache | None = None

        async def handle(request: Request) -> Response:
            # FastAPI calls get_route_handler() again for each router that includes this route.
            nonlocal cache
            cache = cache or RouteCache(policy, matched_route(request.scope))
            return await cache.respond(request, handler)

        return handle


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Check all cached routes with the dependencies of the routers that include them.

    Raises TypeError if a dependency would be skipped that must not be. Routes that are added later
    are checked at their first request.
    """
    for route in iter_route_contexts(list(routes)):
        original = route.original_route
        check_routes(getattr(original, "routes", None) or ())  # of a mounted application
        policy = _policy_of(original) if isinstance(original, CachedRoute) else None
        calls = [each.call for each in walk(route.dependant)] if hasattr(route, "dependant") else []
        if any(isinstance(call, ResponsePolicy) and call != policy for call in calls):
            raise TypeError(f"`{route.name}`: {_NOT_ON_A_CACHED_ROUTE}")
        if policy is not None:
            _check_policy(policy, route)


def _policy_of(route: Any) -> ResponsePolicy | None:
    calls = [depends.dependency for depends in getattr(route, "dependencies", ())]
    policies = [call for call in calls if isinstance(call, ResponsePolicy)]
    if len(policies) > 1:
        raise TypeError(f"`{route.name}` has more than one cached_response(). Remove all but one.")
    return policies[0] if policies else None


class RouteCache:
    """Caches the responses of a route. Raises TypeError if its policy is not safe for the route."""

    def __init__(self, policy: ResponsePolicy, route: Any) -> None:
        _check_policy(policy, route)
        self.policy = policy
        endpoint = route.endpoint
        owner = f"{endpoint.__module__}.{getattr(endpoint, '__qualname__', route.name)}"
        calls = [each.call for each in walk(route.dependant)]
        # A mounted application has no `authenticate`.
        self.is_public = allows_anonymous(endpoint) or authenticate not in calls
        self.scopes = required_scopes(route.dependant)
        self.headers = _cache_headers(policy, is_public=self.is_public)
        codec = ResponseCodec(policy, self.headers)
        self.values: Policy[Response] = Policy(route.name, codec, owner, ttl=policy.ttl)
        self.template: str = route.path_format
        ignored = (*_STATE_ONLY_DEPENDENCIES, policy)
        self._calls = [call for call in calls[1:] if call not in ignored]
        # An endpoint that takes the request may put its query and its host into the response.
        others = list(_without_guards(route.dependant))
        self.reads_request = any(map(_takes_request, others))
        self.reads_query = self.reads_request or any(each.query_params for each in others)
        # Part of the key: a release with a different response model ignores old cached responses.
        self.schema = digest(to_json(TypeAdapter(route.response_model).json_schema()))[:8]
        # A subclass may check the request.
        self.may_precede_routing = type(getattr(route, "original_route", route)) is CachedRoute
        hints = hints_of(endpoint) if inspect.isfunction(endpoint) else {}
        self._parameters = {
            name: TypeAdapter[Any](hints.get(name, str)) for name in route.param_convertors
        }

    def is_overridden(self, app: Any) -> bool:
        """Return whether a test replaces a dependency of the route, so that responses may differ."""
        overrides = app.dependency_overrides
        return bool(overrides) and any(call in overrides for call in self._calls)

    async def admits(self, connection: HTTPConnection) -> bool:
        """Return whether the caller has the scopes that the endpoint requires."""
        if self.is_public and self.policy.identity is None:
            return True
        principal = await find_principal(connection)
        return self.scopes <= principal.scopes if principal else self.is_public

    async def respond(self, request: Request, handler: Handler) -> Response:
        scope = request.scope
        scope[POLICY_SCOPE_KEY] = self.policy
        cache = current_cache()
        path = None if self.is_overridden(request.app) else self._path(scope)
        if path is None or not await self.admits(request):
            path = None  # the endpoint, or one of its dependencies, responds with the error
        if cache is None or path is None or (key := path.cache_key(scope)) is None:
            response = _with_headers(await handler(request), _BYPASS_HEADERS)
            return apply_if_none_match(response, scope)

        async def compute() -> Response:
            return _with_headers(await handler(request), self.headers)

        response = await cache.fetch(self.values, key, path.tags, compute)
        if self.may_precede_routing and "app_root_path" not in scope:  # no Mount
            scope[PATH_SCOPE_KEY] = path
        return apply_if_none_match(response, scope)

    def _path(self, scope: Scope) -> "CachedPath | None":
        """Return the path with normalized parameters: a UUID can be written in several ways."""
        try:
            values = {
                name: _canonical(adapter.validate_python(scope["path_params"][name]))
                for name, adapter in self._parameters.items()
            }
        except ValidationError:
            return None  # FastAPI responds with the validation error
        tags = tuple(tag.format_map(values) for tag in self.policy.tags)
        # The application may be mounted at several paths or hosts.
        mount = format_value(scope.get("root_path", ""))
        outer = {name: each for name, each in scope["path_params"].items() if name not in values}
        place = f"{mount}{format_value(outer) if outer else ''}{self.template.format_map(values)}"
        return CachedPath(self, f"response:{self.schema}:{place}", tags)


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
        elif self.route.is_public and any(
            name in CREDENTIAL_HEADERS for name, _ in scope["headers"]
        ):
            return None
        if policy.vary:
            headers = HTTPConnection(scope).headers
            key = f"{key}~{digest(to_json([headers.get(name) for name in policy.vary]))}"
        return shorten(key)


class ResponseCodec:
    """Serializes a response as a JSON list of its headers, a newline and the body."""

    def __init__(self, policy: ResponsePolicy, added: Headers) -> None:
        self.added = added
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
                for token in _header_tokens(value, b"cache-control", ignored=self.added)
            )
            or not self.vary.issuperset(_header_tokens(value, b"vary"))  # not in the key
        ):
            return None
        headers = [
            (name.decode("latin-1"), text.decode("latin-1"))
            for name, text in value.raw_headers
            if not name.startswith(b"ratelimit")  # of this request's caller
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


def _cache_headers(policy: ResponsePolicy, *, is_public: bool) -> Headers:
    scope = "public" if is_public and not policy.identity else "private"
    freshness = f"max-age={policy.max_age}" if policy.max_age else "no-cache"
    headers = [(b"cache-control", f"{scope}, {freshness}".encode())]
    vary = [name.encode() for name in policy.vary]
    if policy.max_age:
        vary += CREDENTIAL_HEADERS  # the next person at the same browser may be another principal
    return [*headers, (b"vary", b", ".join(vary))] if vary else headers


def _with_headers(response: Response, headers: Headers) -> Response:
    if response.status_code == _OK:
        # Several Vary headers add up. For any other header, the value from the endpoint is used.
        given = {name for name, _ in response.raw_headers} - {b"vary"}
        added = [header for header in headers if header[0] not in given]
        if b"etag" not in given and (body := getattr(response, "body", None)):
            added.append((b"etag", f'"{digest(body)}"'.encode()))
        response.raw_headers = [*response.raw_headers, *added]
    return response


def _canonical(value: Any) -> str:
    try:
        return format_value(value)
    except TypeError:  # an IP address, for example
        return format_value(str(value))


def _check_policy(policy: ResponsePolicy, route: Any, *, is_complete: bool = True) -> None:
    """Raises TypeError if a cached response may reach someone who must not receive it.

    `is_complete=False` means that a router may add a prefix and dependencies to the route.
    """
    name, dependants = route.name, list(walk(route.dependant))
    if route.methods != {"GET"}:
        raise TypeError(
            f"`{name}` declares {', '.join(sorted(route.methods or ()))}, but only GET responses"
            " can be cached. Remove cached_response() from this route."
        )
    if route.body_field is not None:
        raise TypeError(f"`{name}` reads the request body, which is not part of the cache key.")
    names = list(route.param_convertors)
    if not is_complete:  # a required query parameter, if no prefix contains it
        query = (field for each in dependants for field in each.query_params)
        names += [field.name for field in query if field.field_info.is_required()]
    for tag in policy.tags:
        parse_template(tag, name, "path parameter", names)
    _check_principal(policy, route)
    _check_credentials(name, policy, dependants)
    _check_headers(name, policy, dependants)
    if not (policy.shared or policy.identity):
        dependants = list(_without_guards(route.dependant))
        takes_request = [each for each in dependants if _takes_request(each)]
        skipped = [each for each in dependants[1:] if _has_no_value(each, route)]
        if takes_request or skipped:
            _refuse(name, [*takes_request, *skipped][0], route.dependant)


def _without_guards(dependant: Dependant) -> Iterator[Dependant]:
    """Yield all dependencies except those whose check `RouteCache.admits` repeats on each hit."""
    yield dependant
    for each in dependant.dependencies:
        is_parameter = each.name is not None  # its value may be in the response
        if each.call is not authenticate and (is_parameter or type(each.call) is not Require):
            yield from _without_guards(each)


def _check_principal(policy: ResponsePolicy, route: Any) -> None:
    calls = [each.call for each in _without_guards(route.dependant)]
    takes_principal = get_principal in calls or get_optional_principal in calls
    if takes_principal and not (policy.identity is by_principal or policy.shared):
        raise TypeError(
            f"The response of `{route.name}` may depend on the principal, because the endpoint or a"
            " dependency takes it. Pass `identity=by_principal` to cached_response(), or"
            " `shared=True` if every principal with the scopes may receive the same response."
        )


def _check_credentials(name: str, policy: ResponsePolicy, dependants: Sequence[Dependant]) -> None:
    is_security = any(isinstance(dependant.call, SecurityBase) for dependant in dependants)
    reads_cookies = any(dependant.cookie_params for dependant in dependants)
    if (is_security or reads_cookies) and policy.identity is None:
        raise TypeError(
            f"`{name}` reads credentials or cookies, so its response may depend on the caller. Pass"
            " `identity=` to cached_response(): a function that returns the verified caller."
        )


def _check_headers(name: str, policy: ResponsePolicy, dependants: Sequence[Dependant]) -> None:
    varied = {header.lower() for header in policy.vary}
    for field in chain.from_iterable(dependant.header_params for dependant in dependants):
        # `get_flat_params` returns the fields of a model. FastAPI converts their underscores.
        for each in get_flat_params(Dependant(header_params=[field])):
            header = each.alias if each is field else each.alias.replace("_", "-")
            if header.lower() not in varied:
                raise TypeError(
                    f"`{name}` reads the request header `{header}`, so its response may depend on"
                    f' it. Add the header to `vary`: cached_response(vary=["{header}"]).'
                )


def _refuse(name: str, dependant: Dependant, endpoint: Dependant) -> None:
    called = getattr(dependant.call, "__name__", dependant.call)
    where = f"`{name}`" if dependant is endpoint else f"The dependency `{called}` of `{name}`"
    reason = (
        "takes the request, so the response may depend on the caller"
        if _takes_request(dependant)
        else "returns no value, so it may reject requests, but it does not run on a cache hit"
    )
    raise TypeError(
        f"{where} {reason}. Pass `identity=` to cached_response(), or `shared=True` if every caller"
        " may receive the same response."
    )


def _has_no_value(dependant: Dependant, route: Any) -> bool:
    """Return whether a dependency only has an effect, and reads no part of the request."""
    call = dependant.call
    if isinstance(call, ResponsePolicy) or call in _STATE_ONLY_DEPENDENCIES:
        return False
    if any(get_flat_params(dependant)) or any(map(_takes_request, walk(dependant))):
        return False
    # FastAPI puts `dependencies=[...]` first.
    guards = route.dependant.dependencies[: len(route.dependencies)]
    if any(dependant is guard for guard in guards):
        return True
    function: Any = call if inspect.isroutine(call) else type(call).__call__
    value = hints_of(function).get("return", Any)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        value = next(iter(get_args(value)), Any)
    return value in (None, type(None))


def _takes_request(dependant: Dependant) -> bool:
    if isinstance(dependant.call, (ResponsePolicy, SecurityBase)):
        return False
    if dependant.call in (*_STATE_ONLY_DEPENDENCIES, get_principal, get_optional_principal):
        return False
    return bool(dependant.request_param_name or dependant.http_connection_param_name)


def _header_tokens(
    response: Response, header: bytes, *, ignored: Sequence[tuple[bytes, bytes]] = ()
) -> list[bytes]:
    """Return the comma-separated tokens of a header, which may occur several times.

    `ignored` are the very headers that the cache has added, not equal ones of an endpoint.
    """
    given = [pair for pair in response.raw_headers if not any(pair is each for each in ignored)]
    values = [value for name, value in given if name == header]
    return [token.strip().lower() for value in values for token in value.split(b",")]
