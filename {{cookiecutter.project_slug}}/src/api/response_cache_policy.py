"""The policy of a cached route, and what it may not be combined with."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from src.api.auth import (
    Require,
    authenticate,
    get_optional_principal,
    get_principal,
    principal_of,
    walk,
)
from src.api.deps import (
    get_app_settings,
    get_database,
    get_expensive_read_session,
    get_read_session,
    get_reader,
)
from src.cache import get_cache
from src.cache.engine.keys import hints_of, parse_template

POLICY_SCOPE_KEY = "response_cache_policy"  # `CachedRoute` adds it to the scope of a request
NOT_ON_A_CACHED_ROUTE = (
    "cached_response() works only in the `dependencies` of a route whose router is an"
    " `APIRouter(route_class=CachedRoute)`."
)
# These dependencies read only the `state` of the request, which does not depend on the caller.
STATE_ONLY_DEPENDENCIES = (
    get_app_settings,
    get_cache,
    get_database,
    get_expensive_read_session,
    get_read_session,
    get_reader,
)


def by_principal(connection: HTTPConnection) -> str | None:
    """Return the principal with its scopes, which can change: for `identity=by_principal`."""
    principal = principal_of(connection)
    return f"{principal} {' '.join(sorted(principal.scopes))}" if principal else None


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
            raise TypeError(NOT_ON_A_CACHED_ROUTE)


def policy_of(route: Any) -> ResponsePolicy | None:
    calls = [depends.dependency for depends in getattr(route, "dependencies", ())]
    policies = [call for call in calls if isinstance(call, ResponsePolicy)]
    if len(policies) > 1:
        raise TypeError(f"`{route.name}` has more than one cached_response(). Remove all but one.")
    return policies[0] if policies else None


def check_policy(policy: ResponsePolicy, route: Any, *, is_complete: bool = True) -> None:
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
        dependants = list(without_guards(route.dependant))
        readers = [each for each in dependants if takes_request(each)]
        skipped = [each for each in dependants[1:] if _has_no_value(each, route)]
        if readers or skipped:
            _refuse(name, [*readers, *skipped][0], route.dependant)


def without_guards(dependant: Dependant) -> Iterator[Dependant]:
    """Yield all dependencies except those whose check `RouteCache.admits` repeats on each hit."""
    yield dependant
    for each in dependant.dependencies:
        is_parameter = each.name is not None  # its value may be in the response
        if each.call is not authenticate and (is_parameter or type(each.call) is not Require):
            yield from without_guards(each)


def _check_principal(policy: ResponsePolicy, route: Any) -> None:
    takes_principal = any(map(_takes_principal, without_guards(route.dependant)))
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
        if takes_request(dependant)
        else "returns no value, so it may reject requests, but it does not run on a cache hit"
    )
    raise TypeError(
        f"{where} {reason}. Pass `identity=` to cached_response(), or `shared=True` if every caller"
        " may receive the same response."
    )


def _has_no_value(dependant: Dependant, route: Any) -> bool:
    """Return whether a dependency only has an effect, and reads no part of the request."""
    call = dependant.call
    if isinstance(call, ResponsePolicy) or call in STATE_ONLY_DEPENDENCIES:
        return False
    if any(get_flat_params(dependant)) or any(map(takes_request, walk(dependant))):
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


def _takes_principal(dependant: Dependant) -> bool:
    return dependant.call in (get_principal, get_optional_principal)


def takes_request(dependant: Dependant) -> bool:
    if isinstance(dependant.call, (ResponsePolicy, SecurityBase)) or _takes_principal(dependant):
        return False
    if dependant.call in STATE_ONLY_DEPENDENCIES:
        return False
    return bool(dependant.request_param_name or dependant.http_connection_param_name)
