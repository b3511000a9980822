"""Authentication: finds out who calls, and checks the scopes that an endpoint requires.

Each endpoint of the application needs valid credentials, unless it is marked with
`@allow_anonymous`. Everyone can read what has no dependencies: plain Starlette routes, as of
`app.add_route`, and what you mount, such as files. Of a FastAPI application that you mount, pass
`dependencies=[Depends(authenticate)]`, and call `add_exception_handlers` for it.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from src.api import (
    deps,
    # % if cookiecutter.__oidc
    oidc,
    # % endif
    # % if cookiecutter.__users
    sessions,
    # % endif
)
from src.core.config import Settings
from src.core.events import State
from src.core.trace import principal_id
from src.db.session import DatabaseUnavailableError
from src.domain.errors import DomainError, MissingScopeError, UnauthenticatedError
from src.domain.principal import Principal, PrincipalKind, Scope
from src.services.api_key import ApiKeyService, reject_key

log = structlog.get_logger(__name__)

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

API_KEY_HEADER = "X-API-Key"
DEVELOPER = Principal(PrincipalKind.DEVELOPER, "development", frozenset(Scope))

_ANONYMOUS = "allows_anonymous"  # attribute of an endpoint
_FOUND_AT = "principal_found_at"  # key in the scope of a request
# A client can hold back the body of a request for days. Middleware has checked the credentials
# before that, so they are checked again.
_FRESH_SECONDS = 5
# These have handlers.
_ERRORS = (DomainError, HTTPException, DatabaseUnavailableError, PoolTimeoutError)


def allow_anonymous(endpoint: Endpoint) -> Endpoint:
    """Let an endpoint respond to requests without credentials."""
    vars(endpoint)[_ANONYMOUS] = True
    return endpoint


def allows_anonymous(endpoint: Callable[..., Any] | None) -> bool:
    return getattr(endpoint, _ANONYMOUS, False)


async def authenticate(connection: HTTPConnection) -> None:
    """Reject requests without valid credentials. The application adds this to each endpoint."""
    if not allows_anonymous(connection.scope.get("endpoint")):
        await get_principal(connection)


async def get_principal(connection: HTTPConnection) -> Principal:
    """Return who calls. Raises UnauthenticatedError."""
    principal = await get_optional_principal(connection)
    if principal is None:
        raise UnauthenticatedError
    return principal


CurrentPrincipal = Annotated[Principal, Depends(get_principal)]


async def get_optional_principal(connection: HTTPConnection) -> Principal | None:
    """Return who calls; None without credentials. Raises UnauthenticatedError for invalid ones."""
    scope = connection.scope
    if deps.PRINCIPAL not in scope or monotonic() - scope[_FOUND_AT] >= _FRESH_SECONDS:
        scope[_FOUND_AT] = monotonic()
        try:
            scope[deps.PRINCIPAL] = found = await _identify(connection)
        except Exception as error:  # noqa: BLE001 - raised below, now and for the next who asks
            scope[deps.PRINCIPAL] = error
        else:
            principal_id.set(str(found) if found else None)
    principal: Principal | Exception | None = scope[deps.PRINCIPAL]
    if isinstance(principal, Exception):
        raise principal
    return principal


async def find_principal(connection: HTTPConnection) -> Principal | None:
    """Return who calls, for middleware; None if the dependencies of the endpoint will raise."""
    try:
        return await get_optional_principal(connection)
    except _ERRORS:
        return None


def principal_of(connection: HTTPConnection) -> Principal | None:
    """Return who calls, if a dependency has found it out."""
    principal = connection.scope.get(deps.PRINCIPAL)
    return principal if isinstance(principal, Principal) else None


OptionalPrincipal = Annotated[Principal | None, Depends(get_optional_principal)]


async def _identify(connection: HTTPConnection) -> Principal | None:
    state = deps.state_of(connection)
    if not any(name in deps.CREDENTIAL_HEADERS for name, _ in connection.scope["headers"]):
        return _anonymous(state["settings"])
    keys = connection.headers.getlist(API_KEY_HEADER)
    # % if cookiecutter.__oidc or cookiecutter.__users
    token = _bearer_token(connection)
    if keys and token is not None:
        log.warning("credentials_rejected", kind="API key and bearer token")
        raise UnauthenticatedError
    # % endif
    if keys:
        return await _by_api_key(state, keys)
    # % if cookiecutter.__oidc
    if token is not None and "." in token:  # a JWT
        return await oidc.identify(state, token)
    # % endif
    # % if cookiecutter.__users
    if principal := await sessions.identify(connection, token):
        return principal
    # % endif
    # % if cookiecutter.__oidc or cookiecutter.__users
    if token is not None:
        log.warning("credentials_rejected", kind="bearer token")
        raise UnauthenticatedError
    # % endif
    return _anonymous(state["settings"])


def _anonymous(settings: Settings) -> Principal | None:
    return None if settings.API_KEYS or settings.is_deployed else DEVELOPER


# % if cookiecutter.__oidc or cookiecutter.__users
def _bearer_token(connection: HTTPConnection) -> str | None:
    """Return the token; None if there is none. Raises UnauthenticatedError for several."""
    given = [value.partition(" ") for value in connection.headers.getlist("Authorization")]
    tokens = [token.strip() for scheme, _, token in given if scheme.lower() == "bearer"]
    if not tokens:
        return None
    if len(given) > 1:
        log.warning("credentials_rejected", kind="bearer token", reason="there are several")
        raise UnauthenticatedError
    return tokens[0]


# % endif
async def _by_api_key(state: State, given: Sequence[str]) -> Principal:
    if len(given) > 1:
        reject_key("several keys")
    if principal := _by_setting(state["settings"], given[0]):
        return principal
    principal, is_use_due = await ApiKeyService.authenticate(state["database"], given[0])
    if is_use_due and (record_use := state.get("record_key_use")):
        record_use(principal.id)
    return principal


def _by_setting(settings: Settings, given: str) -> Principal | None:
    # Compare with every key, each in constant time: the duration must not reveal a match.
    known = [key.get_secret_value().encode() for key in settings.API_KEYS]
    matches = [key for key in known if secrets.compare_digest(given.encode(), key)]
    if not matches:
        return None
    # All processes have the same name for a key, and it reveals nothing about it.
    name = f"API_KEYS-{sha256(matches[0]).hexdigest()[:12]}"
    return Principal(PrincipalKind.API_KEY, name, DEVELOPER.scopes)


@dataclass(frozen=True)
class Require:
    """A dependency that returns the principal. FastAPI calls it."""

    scopes: tuple[Scope, ...]

    async def __call__(self, principal: CurrentPrincipal) -> Principal:
        for scope in self.scopes:
            if scope not in principal.scopes:
                raise MissingScopeError(scope)
        return principal


def required_scopes(dependant: Dependant) -> frozenset[Scope]:
    """Return the scopes of all `require()` of a route and of the routers that include it."""
    calls = [each.call for each in walk(dependant)]
    return frozenset().union(*(call.scopes for call in calls if isinstance(call, Require)))


def walk(dependant: Dependant) -> Iterator[Dependant]:
    """Yield the dependant and all its dependencies."""
    yield dependant
    for each in dependant.dependencies:
        yield from walk(each)


def require(*scopes: Scope) -> Any:
    """Require scopes: `dependencies=[require(Scope.…)]`, or as a parameter the principal.

    `principal: Annotated[Principal, require(Scope.…)]`
    """
    if not scopes or not all(isinstance(scope, Scope) for scope in scopes):
        raise TypeError(
            "require() needs at least one member of `Scope`. An endpoint that only needs valid"
            " credentials needs no require()."
        )
    return Depends(Require(scopes))


def prepare_routes(routes: Iterable[BaseRoute]) -> None:
    """Remove `authenticate` from endpoints that allow anonymous callers: it would do nothing.

    A dependency costs a quarter of a health check. Raises TypeError if such an endpoint also needs
    the principal.
    """
    for route in iter_route_contexts(list(routes)):
        prepare_routes(getattr(route.original_route, "routes", None) or ())  # of a mount
        if not allows_anonymous(getattr(route, "endpoint", None)):
            continue
        if any(each.call is get_principal for each in walk(route.dependant)):
            raise TypeError(
                f"`{route.name}` allows anonymous callers, but it or a router that includes it"
                " needs the principal. Remove @allow_anonymous; or remove require(), and take an"
                " `OptionalPrincipal` instead."
            )
        dependencies = route.dependant.dependencies
        dependencies[:] = [each for each in dependencies if each.call is not authenticate]
