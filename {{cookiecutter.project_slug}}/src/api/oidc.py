"""Access tokens of the issuer as credentials, and its login in the documentation page."""

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI, HTTPException
from fastapi.openapi.docs import get_swagger_ui_oauth2_redirect_html
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.api.deps import state_of
from src.api.problems import RETRY_AFTER
from src.api.security_headers import PAGE_POLICY
from src.core.config import Settings
from src.core.events import State
from src.domain.errors import UnauthenticatedError
from src.domain.principal import Principal
from src.oidc import InvalidTokenError, IssuerUnavailableError

if TYPE_CHECKING:
    from src.oidc.documents import Endpoints

log = structlog.get_logger(__name__)

SCHEME = "Access token"  # as in `SECURITY_SCHEMES`


async def identify(state: State, token: str) -> Principal:
    """Return the principal of an access token. Raises UnauthenticatedError or HTTPException."""
    access_tokens = state.get("oidc")
    try:
        if access_tokens is None:
            raise InvalidTokenError("OIDC_ISSUER is not set")  # noqa: TRY301 - one place logs
        return await access_tokens.identify(token)
    except InvalidTokenError as error:
        log.warning("credentials_rejected", kind="access token", reason=str(error))
        raise UnauthenticatedError from None
    except IssuerUnavailableError:
        detail = "Access tokens cannot be verified at the moment. Try again later."
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, RETRY_AFTER) from None


def add_login(app: FastAPI, settings: Settings) -> None:
    """Let the documentation page log in by authorization code with PKCE.

    Without `OIDC_CLIENT_ID`, it has a field for an access token instead.
    """
    if not (settings.OIDC_ISSUER and settings.OIDC_CLIENT_ID):
        return
    page = f"{settings.API_PREFIX}/docs"
    app.add_route(f"{page}/openapi.json", _openapi_with_login, include_in_schema=False)
    app.add_route(f"{page}/oauth2-redirect", _redirect_page, include_in_schema=False)
    app.add_middleware(LoginPagesMiddleware, page=page)
    app.swagger_ui_oauth2_redirect_url = f"{page}/oauth2-redirect"
    app.swagger_ui_parameters = {"url": "docs/openapi.json"}  # relative to the page
    app.swagger_ui_init_oauth = {
        "clientId": settings.OIDC_CLIENT_ID,
        "scopes": settings.OIDC_LOGIN_SCOPES,
        "usePkceWithAuthorizationCodeGrant": True,
        # Without it, Auth0 returns a token that is not a JWT. Others ignore it.
        "additionalQueryStringParams": {"audience": settings.OIDC_AUDIENCE[0]}
        if settings.OIDC_AUDIENCE
        else {},
    }


async def _redirect_page(_: Request) -> Response:
    return get_swagger_ui_oauth2_redirect_html()


async def _openapi_with_login(request: Request) -> Response:
    """Return the OpenAPI document with the endpoints of the issuer, if they are known.

    The published document does not have them: it is the same in all environments.
    """
    document = dict(request.app.openapi())
    state = state_of(request)
    if endpoints := _endpoints_of(state):
        components = document["components"]
        scopes = dict.fromkeys(state["settings"].OIDC_LOGIN_SCOPES, "")
        flow = {
            "authorizationUrl": endpoints.authorization,
            "tokenUrl": endpoints.token,
            "scopes": scopes,
        }
        scheme = {"type": "oauth2", "flows": {"authorizationCode": flow}}
        schemes = {**components["securitySchemes"], SCHEME: scheme}
        document["components"] = {**components, "securitySchemes": schemes}
    if root_path := request.scope.get("root_path", "").rstrip("/"):
        document["servers"] = [{"url": root_path}, *document.get("servers", [])]
    return JSONResponse(document)


def _endpoints_of(state: State | None) -> "Endpoints | None":
    """Return None until the issuer is available."""
    access_tokens = state and state.get("oidc")
    documents = access_tokens and access_tokens.issuer.documents
    return documents.endpoints if documents else None


class LoginPagesMiddleware:
    """Let the page open the issuer's login in a window, and fetch a token from the issuer."""

    def __init__(self, app: ASGIApp, page: str) -> None:
        self.app = app
        self.page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not path.startswith(self.page):
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._allow_login(MutableHeaders(raw=message["headers"]), scope, path)
            await send(message)

        await self.app(scope, receive, with_headers)

    def _allow_login(self, headers: MutableHeaders, scope: Scope, path: str) -> None:
        if path == f"{self.page}/oauth2-redirect":
            # It is in a window of the issuer's page: any other value would cut it off from ours.
            headers["Cross-Origin-Opener-Policy"] = "unsafe-none"
        if path != self.page:
            return
        headers["Cross-Origin-Opener-Policy"] = "same-origin-allow-popups"
        if endpoints := _endpoints_of(scope.get("state")):
            token = urlsplit(endpoints.token)
            policy = f"{PAGE_POLICY.decode()}; connect-src 'self' {token.scheme}://{token.netloc}"
            headers["Content-Security-Policy"] = policy
