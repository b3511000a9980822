"""The login of the documentation page: authorization code with PKCE, without a client secret."""

import hashlib
import re
from collections.abc import AsyncGenerator
from urllib.parse import parse_qs, urlsplit

import pytest
from httpx import AsyncClient

from src.core.config import Settings
from src.db.session import Database
from src.oidc import open_access_tokens
from tests.fixtures.client import application, connect
from tests.test_auth.issuer import AUDIENCE, CLIENT_ID, Issuer, encode, serve_issuer

PREFIX = "/service"  # of a proxy, which removes it


def settings_of(issuer: Issuer, client_id: str | None) -> Settings:
    return Settings(
        ENV="test",
        OIDC_ISSUER=issuer.url,
        OIDC_AUDIENCE=[AUDIENCE],
        OIDC_CLIENT_ID=client_id,
        OIDC_LOGIN_SCOPES=["openid", "api"],
    )


@pytest.fixture(params=[CLIENT_ID])
async def client(request: pytest.FixtureRequest, database: Database) -> AsyncGenerator[AsyncClient]:
    with serve_issuer("/realms/main") as issuer:
        settings = settings_of(issuer, request.param)
        async with open_access_tokens(settings) as access_tokens:
            assert access_tokens is not None
            await access_tokens.identify(issuer.token())  # the keys are loaded
            app = application(settings)
            async with connect(
                app, database, settings, root_path=PREFIX, oidc=access_tokens
            ) as client:
                yield client


async def test_log_in(client: AsyncClient) -> None:
    page = await client.get("/api/docs")
    [path] = re.findall(r"oauth2RedirectUrl: window.location.origin \+ '(.*?)'", page.text)
    [url] = re.findall(r'"url": "(.*?)"', page.text)
    document = (await client.get(f"/api/{url}")).json()
    flow = document["components"]["securitySchemes"]["Access token"]["flows"]["authorizationCode"]
    verifier = "a-secret-of-the-page-" * 3
    query = {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": f"http://test{path}",
        "scope": " ".join(flow["scopes"]),
        "state": "1",
        "code_challenge": encode(hashlib.sha256(verifier.encode()).digest()).decode(),
        "code_challenge_method": "S256",
    }

    async with AsyncClient() as browser:
        redirect = await browser.get(flow["authorizationUrl"], params=query)
        code = parse_qs(urlsplit(redirect.headers["Location"]).query)["code"][0]
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier}
        token = (await browser.post(flow["tokenUrl"], data=form)).json()

    assert '"usePkceWithAuthorizationCodeGrant": true' in page.text
    assert (CLIENT_ID in page.text, AUDIENCE in page.text) == (True, True)
    assert token["scope"] == "openid api"
    assert path == f"{PREFIX}/api/docs/oauth2-redirect"
    assert document["servers"] == [{"url": PREFIX}]
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert (await client.get("/api/v1/sample-notes/", headers=headers)).status_code == 200


async def test_only_the_page_may_open_windows_and_call_the_issuer(client: AsyncClient) -> None:
    page = await client.get("/api/docs")
    back = await client.get("/api/docs/oauth2-redirect")
    other = await client.get("/api/redoc")
    published = (await client.get("/api/openapi.json")).json()

    assert re.search(
        r"; connect-src 'self' http://127\.0\.0\.1:\d+$", page.headers["Content-Security-Policy"]
    )
    assert "connect-src" not in back.headers["Content-Security-Policy"]
    assert "connect-src" not in other.headers["Content-Security-Policy"]
    policies = [each.headers["Cross-Origin-Opener-Policy"] for each in (page, back, other)]
    assert policies == ["same-origin-allow-popups", "unsafe-none", "same-origin"]
    assert published["components"]["securitySchemes"]["Access token"]["type"] == "http"


@pytest.mark.parametrize("client", [None], indirect=True)
async def test_without_a_client_the_page_accepts_a_token(client: AsyncClient) -> None:
    page = await client.get("/api/docs")

    assert "initOAuth" not in page.text
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert (await client.get("/api/docs/openapi.json")).status_code == 404
