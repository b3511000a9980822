"""What authentication means for the body of a request."""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.auth import allows_anonymous, authenticate, get_principal
from src.api.body_limit import has_body
from src.api.routing import matched_route


class AuthenticationMiddleware:
    """Give an endpoint no body of a caller who is rejected.

    FastAPI reads and parses the whole body, and stores files, before it calls a dependency.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(scope):
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def receive_if_admitted() -> Message:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                if await _rejects(scope):
                    return {"type": "http.request", "body": b""}
            return await receive()

        await self.app(scope, receive_if_admitted, send)


async def _rejects(scope: Scope) -> bool:
    """Return whether `authenticate` will reject the request to the matched route."""
    route = matched_route(scope)
    dependant = getattr(route, "dependant", None)
    calls = [each.call for each in dependant.dependencies] if dependant else []
    if authenticate not in calls or authenticate in scope["app"].dependency_overrides:
        return False
    if allows_anonymous(route.endpoint):
        return False
    try:
        await get_principal(HTTPConnection(scope))
    except Exception:  # noqa: BLE001 - `authenticate` raises it too, for the exception handlers
        return True
    return False
