"""Returns cached responses before routing and FastAPI, which would take most of the time of a hit."""

from typing import Any, NamedTuple

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from src.api.idempotency import IdempotencyMiddleware
from src.api.response_cache import PATH_SCOPE_KEY, CachedPath
from src.api.response_cache_codec import apply_if_none_match
from src.api.routing import FOUND
from src.cache import Cache, use_cache

MAX_PATHS = 10_000
MAX_PATH_LENGTH = 200  # callers choose the paths, so limit the memory


class KnownPath(NamedTuple):
    path: CachedPath
    found: dict[str, Any]  # by the index of routes; for the metrics


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
        with use_cache(cache):
            await self.app(scope, receive, send)
        if PATH_SCOPE_KEY in scope and _path_determines_route(scope):
            self._add(scope)

    def _add(self, scope: Scope) -> None:
        if len(self.known) >= MAX_PATHS:
            self.known.clear()
        found = {name: scope[name] for name in FOUND}
        self.known[scope["path"]] = KnownPath(scope[PATH_SCOPE_KEY], found)

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
        scope.update(known.found)
        return apply_if_none_match(response, scope)


def _path_determines_route(scope: Scope) -> bool:
    """Return whether only the index of routes is between the cache and the route."""
    classes: list[object] = [middleware.cls for middleware in scope["app"].user_middleware]
    is_last = classes[-2:] == [CacheMiddleware, IdempotencyMiddleware]
    is_indexed = all(name in scope for name in FOUND)
    return is_last and is_indexed and len(scope["path"]) <= MAX_PATH_LENGTH
