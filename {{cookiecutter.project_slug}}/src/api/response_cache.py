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
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute
from starlette.types import Scope

from src.api.auth import allows_anonymous, authenticate, find_principal, required_scopes, walk
from src.api.deps import CREDENTIAL_HEADERS
from src.api.response_cache_codec import (
    ResponseCodec,
    apply_if_none_match,
    cache_headers,
    with_headers,
)
from src.api.response_cache_policy import (
    NOT_ON_A_CACHED_ROUTE,
    POLICY_SCOPE_KEY,
    STATE_ONLY_DEPENDENCIES,
    ResponsePolicy,
    by_principal,
    check_policy,
    policy_of,
    takes_request,
    without_guards,
)
from src.api.routing import matched_route
from src.cache import current_cache
from src.cache.engine.keys import check_strings, digest, format_value, hints_of, shorten
from src.cache.engine.policy import Policy

__all__ = ["CachedRoute", "by_principal", "cached_response", "check_routes"]

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

PATH_SCOPE_KEY = "cached_path"  # `RouteCache` adds it to the scope of a request
_BYPASS_HEADERS = [(b"cache-control", b"private, no-cache")]


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


class CachedRoute(APIRoute):
    """A route that caches its responses if its dependencies include a `cached_response()`."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        policy = policy_of(self)
        if policy is None:
            return handler
        check_policy(policy, self, is_complete=False)
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
        policy = policy_of(original) if isinstance(original, CachedRoute) else None
        calls = [each.call for each in walk(route.dependant)] if hasattr(route, "dependant") else []
        if any(isinstance(call, ResponsePolicy) and call != policy for call in calls):
            raise TypeError(f"`{route.name}`: {NOT_ON_A_CACHED_ROUTE}")
        if policy is not None:
            check_policy(policy, route)


class RouteCache:
    """Caches the responses of a route. Raises TypeError if its policy is not safe for the route."""

    def __init__(self, policy: ResponsePolicy, route: Any) -> None:
        check_policy(policy, route)
        self.policy = policy
        endpoint = route.endpoint
        owner = f"{endpoint.__module__}.{getattr(endpoint, '__qualname__', route.name)}"
        calls = [each.call for each in walk(route.dependant)]
        # A mounted application has no `authenticate`.
        self.is_public = allows_anonymous(endpoint) or authenticate not in calls
        self.scopes = required_scopes(route.dependant)
        self.headers = cache_headers(policy, is_public=self.is_public)
        codec = ResponseCodec(policy, self.headers)
        self.values: Policy[Response] = Policy(route.name, codec, owner, ttl=policy.ttl)
        self.template: str = route.path_format
        ignored = (*STATE_ONLY_DEPENDENCIES, policy)
        self._calls = [call for call in calls[1:] if call not in ignored]
        # An endpoint that takes the request may put its query and its host into the response.
        others = list(without_guards(route.dependant))
        self.reads_request = any(map(takes_request, others))
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
            response = with_headers(await handler(request), _BYPASS_HEADERS)
            return apply_if_none_match(response, scope)

        async def compute() -> Response:
            return with_headers(await handler(request), self.headers)

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


def _canonical(value: Any) -> str:
    try:
        return format_value(value)
    except TypeError:  # an IP address, for example
        return format_value(str(value))
