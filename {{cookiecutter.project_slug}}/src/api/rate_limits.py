"""Rate limits: `RATE_LIMIT` for all requests of a caller, `rate_limit("5/minute")` for a route.

A caller is a principal, else an IP address. While the store of the counters is unavailable,
requests are served without a limit.
"""

from collections.abc import Callable, Collection
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from math import ceil
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Response
from prometheus_client import Counter
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.auth import find_principal
from src.api.problems import problem_response
from src.api.routing import route_template
from src.core.rate_limits import Count, Rate
from src.domain.principal import PrincipalKind

UNCHECKED = Counter(
    "rate_limit_unchecked_requests_total",
    "Requests served without a rate limit, because the store of the counters was unavailable.",
)


async def get_caller(connection: HTTPConnection) -> str:
    """Return who calls: the principal, else the address."""
    principal = await find_principal(connection)
    if principal and principal.kind is not PrincipalKind.DEVELOPER:
        return str(principal)
    return await address_of(connection)


async def address_of(connection: HTTPConnection) -> str:
    """Return the address of the client; for IPv6, the /64 network of a site."""
    host = connection.client.host if connection.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or f"network {int(address) >> 64:x}")
    return str(address)


def _count_of(scope: Scope) -> Count | None:
    """Return how to count requests; None in tests, which have no rate limits by default."""
    count: Count | None = scope.get("state", {}).get("count_requests")
    return count


async def get_counter(connection: HTTPConnection) -> Count | None:
    return _count_of(connection.scope)


def rate_limit(rate: str, by: Callable[..., Any] = get_caller) -> Any:
    """Limit the requests to a route, for `dependencies=`. All other requests get 429.

    `by` is a dependency that returns the caller as text, such as the ID of a user.
    """
    parsed = Rate.parse(rate)

    async def check_rate_limit(
        connection: HTTPConnection,
        response: Response,
        count: Annotated[Count | None, Depends(get_counter)],
        caller: Annotated[str, Depends(by)],
    ) -> None:
        scope = connection.scope
        route = f"{scope.get('method')} {route_template(scope)}"
        for name, value in (await _check(count, parsed, route, caller)).items():
            response.headers.append(name, value)

    return Depends(check_rate_limit)


class RateLimitMiddleware:
    """Limit all requests of a caller, with WebSocket handshakes, except to the exempt paths."""

    def __init__(self, app: ASGIApp, rate: str, exempt: Collection[str]) -> None:
        self.app = app
        self.rate = Rate.parse(rate)
        self.exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        count = _count_of(scope)  # None during the lifespan
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if count is None or path in self.exempt:
            await self.app(scope, receive, send)
            return
        try:
            headers = await _check(count, self.rate, "", await get_caller(HTTPConnection(scope)))
        except HTTPException as error:
            status, detail = error.status_code, error.detail
            response = problem_response(scope, status, headers=error.headers, detail=detail)
            await response(scope, receive, send)
            return
        added = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self.app(scope, receive, with_headers)


async def _check(count: Count | None, rate: Rate, route: str, caller: str) -> dict[str, str]:
    """Count the request, and return the header fields of draft-ietf-httpapi-ratelimit-headers.

    Raises HTTPException with 429 if the caller has used up the quota.
    """
    if count is None:
        return {}
    identity = f"{rate.text}\0{route}\0{caller}"
    key = blake2b(identity.encode(errors="replace"), digest_size=16).hexdigest()
    counted = await count(key, rate.seconds)
    if counted is None:
        UNCHECKED.inc()
        return {}
    left = min(rate.seconds, max(1, ceil(counted.seconds_left)))  # a float may be a little more
    headers = {
        "RateLimit-Policy": f'"{rate.text}";q={rate.quota};w={rate.seconds}',
        "RateLimit": f'"{rate.text}";r={max(0, rate.quota - counted.number)};t={left}',
    }
    if counted.number > rate.quota:
        detail = f"Only {rate.text} requests are allowed. Try again in {left} s."
        raise HTTPException(429, detail, {**headers, "Retry-After": str(left)})
    return headers
