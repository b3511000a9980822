"""Finds the route of a request with one regular expression for all routes of a method.

FastAPI tries routes one by one, and those of included routers several times for each request.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastapi import params
from fastapi.routing import APIRoute, APIRouter, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, Match, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

Prepare = Callable[[list[BaseRoute]], None]

_CONTEXT = "route_context"
_TEMPLATE = "route_template"
# Keys that the index adds to the scope of a request, for the metrics.
FOUND = ("route", _CONTEXT, _TEMPLATE)
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_OF_API_ROUTE = (APIRoute.matches, APIRoute.handle)
_PARAMETER = re.compile(r"\(\?P<\w+>")


class Indexed(NamedTuple):
    matches: Callable[[Scope], tuple[Match, Scope]]
    app: ASGIApp
    scope: dict[str, Any]  # what the router would add to the scope of a request


class Routes(NamedTuple):
    """The routes of a method. The pattern's last group tells which of them matches first."""

    pattern: re.Pattern[str]
    by_group: dict[int | None, Indexed | None]


class RouteIndex:
    """The entrance of the application's router.

    Requests that it does not find go to the router. These are unknown paths, other methods,
    redirects, forms, mounts and WebSockets. At startup, it calls `preparations` with all routes; a
    TypeError stops the startup.
    """

    def __init__(self, router: APIRouter, preparations: Sequence[Prepare]) -> None:
        self.router = router
        self.preparations = preparations
        self._indexed: list[BaseRoute] = []
        self._routes: dict[str, Routes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope) if scope["type"] == "http" else None
        if found is not None:
            await found(scope, receive, send)
            return
        if scope["type"] == "lifespan":
            await self._prepare(receive, send)
        await self.router.app(scope, receive, send)

    async def _prepare(self, receive: Receive, send: Send) -> None:
        try:
            for prepare in self.preparations:
                prepare(self.router.routes)
        except TypeError as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise

    def _find(self, scope: Scope) -> ASGIApp | None:
        """Return the application of the route, and add what the router adds to the scope."""
        if self.router.routes != self._indexed:  # at the first request, and in tests
            self._indexed = [*self.router.routes]
            self._routes = index(self.router)
        routes = self._routes.get(scope["method"])
        path, root_path = scope["path"], scope.get("root_path")
        if root_path and path.startswith(f"{root_path}/"):
            path = path[len(root_path) :]
        # The router tells FastAPI's telemetry which route it has selected.
        if routes is None or scope.get("fastapi.telemetry"):
            return None
        match = routes.pattern.match(path)
        found = match and routes.by_group[match.lastindex]
        if not found:
            return None
        outcome, parameters = found.matches(scope)
        if outcome is not Match.FULL:  # the path is the prefix of the server
            return None
        scope.update(parameters)
        scope.update(found.scope)
        return found.app


def index(router: APIRouter) -> dict[str, Routes]:
    """Index the router's routes by method. Their order decides if several routes match a path."""
    found: dict[str, list[tuple[str, Indexed | None]]] = {method: [] for method in _METHODS}
    for route in iter_route_contexts(router.routes):
        if isinstance(route.original_route, WebSocketRoute):
            continue
        pattern = getattr(route, "path_regex", None)
        if pattern is None:  # a `Host`, for example
            break
        indexed = None
        if _is_plain(route):
            added = {"router": router, "route": route.original_route}
            added |= {_CONTEXT: route, _TEMPLATE: route.path_format}
            indexed = Indexed(route.matches, route.app, added)
        for method in found.keys() & (route.methods or _METHODS):  # not methods such as PURGE
            found[method].append((_PARAMETER.sub("(?:", pattern.pattern), indexed))
    return {method: _combine(each) for method, each in found.items() if each}


def _combine(patterns: Sequence[tuple[str, Indexed | None]]) -> Routes:
    groups, by_group = 0, dict[int | None, Indexed | None]()
    for pattern, indexed in patterns:
        groups += re.compile(pattern).groups + 1
        by_group[groups] = indexed
    return Routes(re.compile("|".join(f"{pattern}()" for pattern, _ in patterns)), by_group)


def _is_plain(route: RouteContext) -> bool:
    """Return whether nothing but the route's own application handles its requests."""
    kind = type(route.original_route)
    if not issubclass(kind, APIRoute) or (kind.matches, kind.handle) != _OF_API_ROUTE:
        return False
    # Limits of forms may come from the routers.
    return route.body_field is None or not isinstance(route.body_field.field_info, params.Form)


def matched_route(scope: Scope) -> Any:
    """Return the matched route with the prefixes and dependencies of its routers, or None.

    For a route of an included router, `scope["route"]` lacks them.
    """
    route = scope.get("route")
    context = scope.get(_CONTEXT) or scope.get("fastapi", {}).get("effective_route_context")
    if context and (not isinstance(route, APIRoute) or context.original_route is route):
        return context
    return route


def route_template(scope: Scope) -> str:
    """Return the template of the matched route, including the prefixes of routers."""
    if template := scope.get(_TEMPLATE):
        return str(template)
    route = matched_route(scope)
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    return str(template or "unmatched")
