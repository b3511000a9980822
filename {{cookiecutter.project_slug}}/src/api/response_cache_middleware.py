"""Returns cached responses before routing, which takes most of the time of a cache hit."""

from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Host
from starlette.types import ASGIApp, Receive, Scope, Send

from src.api.idempotency import IdempotencyMiddleware
from src.api.response_cache import PATH_SCOPE_KEY, CachedPath
from src.api.response_cache_codec import apply_if_none_match
from src.api.routing import ROUTING
from src.cache import Cache, use_cache

MAX_PATHS = 10_000
MAX_PATH_LENGTH = 200  # callers choose the paths, so limit the memory


class KnownPath(NamedTuple):
    path: CachedPath
    scope: dict[str, Any]  # added by routing, read by the metrics


class CacheMiddleware:
    """Makes the cache available to `@cached`, and returns cached responses.

    A path is known after its first response. Later requests to it need no routing on a cache hit.
    If other middleware is inside of this one, the route returns cached responses, so that each
    request passes through that middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.known: dict[str, KnownPath] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The scope has no cache during the lifespan, and for a test client without a lifespan.
        cache: Cache | None = scope.get("state", {}).get("cache")
        if cache is None:
            await self.app(scope, receive, send)
            return
        response = await self._cached_response(cache, scope)
        if response is not None:
            await response(scope, receive, send)
            return
        app = scope["app"]
        with use_cache(cache):
            await self.app(scope, receive, send)
        is_cached = PATH_SCOPE_KEY in scope and len(scope["path"]) <= MAX_PATH_LENGTH
        if is_cached and _path_determines_route(app):
            if len(self.known) >= MAX_PATHS:
                self.known.clear()
            routing = {name: scope[name] for name in ROUTING if name in scope}
            self.known[scope["path"]] = KnownPath(scope[PATH_SCOPE_KEY], routing)

    async def _cached_response(self, cache: Cache, scope: Scope) -> Response | None:
        known = self.known.get(scope["path"])
        if known is None or scope.get("method") != "GET":
            return None
        if known.path.route.is_overridden(scope["app"]):
            return None
        is_admitted = await known.path.route.admits(HTTPConnection(scope))
        if not is_admitted or (key := known.path.cache_key(scope)) is None:
            return None  # the route responds, with an error if the caller is not admitted
        response = await cache.get(known.path.route.values, key, known.path.tags)
        if response is None:
            return None
        scope.update(known.scope)
        return apply_if_none_match(response, scope)


def _path_determines_route(app: FastAPI) -> bool:
    """Return whether only this application's routing by path is between the cache and a route."""
    classes: list[object] = [middleware.cls for middleware in app.user_middleware]
    if classes[-2:] != [CacheMiddleware, IdempotencyMiddleware]:
        return False
    routes = iter_route_contexts(app.routes)
    return not any(isinstance(route.original_route, Host) for route in routes)
