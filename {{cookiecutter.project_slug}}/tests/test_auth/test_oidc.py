"""Access tokens of a real issuer on loopback, in requests to the application."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from httpx import AsyncClient, Response
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from structlog.testing import capture_logs

from main import create_application
from src.api import auth
from src.api import oidc as api_oidc
from src.api.auth import CurrentPrincipal, allow_anonymous
from src.core.config import Settings
from src.db.session import Database
from src.domain.principal import ROLES, Role
from src.oidc import documents, open_access_tokens
from src.oidc import issuer as issuer_module
from src.oidc.access_tokens import AccessTokens
from tests.fixtures import oidc
from tests.fixtures.client import application, connect
from tests.fixtures.commands import Run
from tests.fixtures.environment import API
from tests.fixtures.oidc import LogIn
from tests.test_auth import issuer as misbehaviour
from tests.test_auth.issuer import (
    AUDIENCE,
    DISCOVERY_PATH,
    JWKS_PATH,
    Issuer,
    encode,
    serve_issuer,
    sign,
)

WHO = "/sample-who"
log_in, logged_in = oidc.log_in, oidc.logged_in  # not those of another kind of credentials


@pytest.fixture(autouse=True)
def _unbound_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`capture_logs` misses loggers that an earlier test has used."""
    for module in (auth, api_oidc):
        monkeypatch.setattr(module, "log", structlog.get_logger())


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = application()

    @app.get(WHO)
    async def who(principal: CurrentPrincipal) -> list[str]:
        return [str(principal), *sorted(principal.scopes)]

    return app


@asynccontextmanager
async def opened(
    app: FastAPI, database: Database, issuer: Issuer, **settings: Any
) -> AsyncGenerator[AsyncClient]:
    """Open a client of the application with this issuer, whose keys may not be loaded yet."""
    values = {"ENV": "test", "OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": [AUDIENCE], **settings}
    async with (
        open_access_tokens(Settings(**values)) as access_tokens,
        connect(app, database, oidc=access_tokens) as client,
    ):
        yield client


@pytest.fixture
async def client(app: FastAPI, database: Database, issuer: Issuer) -> AsyncGenerator[AsyncClient]:
    async with opened(app, database, issuer) as client:
        yield client


async def who(client: AsyncClient, token: str, **headers: str) -> Response:
    return await client.get(WHO, headers={"Authorization": f"Bearer {token}", **headers})


async def reason(client: AsyncClient, token: str) -> str:
    """Return the logged reason for the rejection. The response does not have it."""
    with capture_logs() as logs:
        response = await who(client, token)
    assert response.status_code == 401
    assert response.json()["detail"] == "Send valid credentials."
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    [event] = [each for each in logs if each["event"] == "credentials_rejected"]
    assert all(part not in str(event) for part in token.split(".") if part)
    return str(event["reason"])


async def readiness(client: AsyncClient) -> tuple[int, str]:
    response = await client.get(f"{API}/health/ready")
    return response.status_code, response.json()["checks"]["oidc"]


class TestTokens:
    async def test_a_token_identifies_its_subject(
        self, client: AsyncClient, issuer: Issuer
    ) -> None:
        response = await who(client, issuer.token(sub="auth0|58c7"))

        assert response.json()[0] == "token:auth0|58c7"

    async def test_the_scheme_is_not_case_sensitive(
        self, client: AsyncClient, issuer: Issuer
    ) -> None:
        headers = {"Authorization": f"bearer  {issuer.token()}"}

        assert (await client.get(WHO, headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        ("algorithm", "key"),
        [
            ("RS256", RSAKey.generate_key(2048)),
            ("PS512", RSAKey.generate_key(2048)),
            ("ES256", ECKey.generate_key("P-256")),
            ("ES512", ECKey.generate_key("P-521")),
            ("EdDSA", OKPKey.generate_key("Ed25519")),
            ("Ed25519", OKPKey.generate_key("Ed25519")),
        ],
    )
    async def test_algorithms(
        self, app: FastAPI, database: Database, issuer: Issuer, algorithm: str, key: Key
    ) -> None:
        issuer.publish(key)

        async with opened(app, database, issuer) as client:
            assert (await who(client, issuer.token(algorithm=algorithm))).status_code == 200

    @pytest.mark.parametrize(
        "claims",
        [
            {"aud": ["https://other.example.com", AUDIENCE]},
            {"nbf": 20, "iat": 20},
            {"exp": -1},
            {"iat": None, "exp": 60.5},
            {"typ": "Bearer", "sid": "1", "azp": "app"},
        ],
    )
    async def test_valid_claims(
        self, client: AsyncClient, issuer: Issuer, claims: dict[str, Any]
    ) -> None:
        """The clocks of the issuer and of this service may differ by 30 seconds."""
        assert (await who(client, issuer.token(**claims))).status_code == 200

    @pytest.mark.parametrize(
        ("claims", "expected"),
        [
            ({"iss": "https://other.example.com"}, "iss"),
            ({"iss": None}, "iss"),
            ({"aud": "https://other.example.com"}, "aud"),
            ({"aud": [f"{AUDIENCE}/"]}, "aud"),
            ({"aud": {AUDIENCE: True}}, "aud"),
            ({"aud": None}, "aud"),
            ({"exp": -31}, "expired"),
            ({"exp": None}, "exp"),
            ({"exp": "2099-01-01"}, "exp"),
            ({"exp": True}, "exp"),
            ({"nbf": 300}, "not yet valid"),
            ({"iat": 300}, "future"),
            ({"sub": None}, "sub"),
            ({"sub": 7}, "sub"),
            ({"sub": ""}, "sub"),
            ({"sub": "x" * 256}, "subject"),
            ({"sub": "a\nprincipal=admin"}, "subject"),
            ({"nonce": "n"}, "not an access token"),
            ({"at_hash": "n"}, "not an access token"),
            ({"typ": "ID"}, "not an access token"),
            ({"typ": "Refresh"}, "not an access token"),
            ({"cnf": {"jkt": "thumbprint"}}, "owner of a key"),
        ],
    )
    async def test_invalid_claims(
        self, client: AsyncClient, issuer: Issuer, claims: dict[str, Any], expected: str
    ) -> None:
        assert expected in await reason(client, issuer.token(**claims))

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ({"typ": "JWT"}, None),
            ({"typ": None}, None),
            ({"typ": "application/AT+JWT"}, None),
            ({"kid": None}, None),
            ({"jku": "http://127.0.0.1:1/keys", "x5u": 7, "jwk": []}, None),
            ({"typ": "dpop+jwt"}, "type"),
            ({"typ": ["JWT"]}, "type"),
            ({"crit": ["exp"], "exp": 1}, "critical"),
            ({"crit": []}, "critical"),
            ({"b64": False}, "critical"),
            ({"kid": "../../etc/passwd"}, "no such key"),
            ({"kid": {"$ne": None}}, "key ID"),
        ],
    )
    async def test_headers(
        self, client: AsyncClient, issuer: Issuer, header: dict[str, Any], expected: str | None
    ) -> None:
        token = issuer.token(header=header)

        if expected is None:
            assert (await who(client, token)).status_code == 200
        else:
            assert expected in await reason(client, token)


class TestForgeries:
    async def test_no_algorithm_without_a_public_key(
        self, client: AsyncClient, issuer: Issuer
    ) -> None:
        [(key_id, key)] = issuer.keys.items()
        assert isinstance(key, ECKey)
        public = key.as_pem(private=False)
        _, claims, signature = issuer.token().split(".")

        names = ("none", "None", "NONE", "HS256", "dir", "RSA-OAEP", "ES256K", "", None, ["RS256"])
        for name in names:
            header = encode(json.dumps({"alg": name, "kid": key_id}).encode()).decode()
            digest = hmac.digest(public, f"{header}.{claims}".encode(), hashlib.sha256)
            for given in ("", signature, encode(digest).decode()):
                token = f"{header}.{claims}.{given}"
                assert "algorithm" in await reason(client, token)

    async def test_a_key_signs_with_its_algorithm_only(
        self, app: FastAPI, database: Database, issuer: Issuer
    ) -> None:
        issuer.publish(RSAKey.generate_key(2048), alg="PS256")

        async with opened(app, database, issuer) as client:
            assert (await who(client, issuer.token(algorithm="PS256"))).status_code == 200
            assert "no such key" in await reason(client, issuer.token(algorithm="RS256"))

    async def test_another_key_with_a_known_id(self, client: AsyncClient, issuer: Issuer) -> None:
        stranger = ECKey.generate_key()
        embedded = stranger.as_dict(private=False)
        token = issuer.token(key=stranger, header={"jwk": embedded, "x5c": ["MII"]})

        assert await reason(client, token) == "the signature is wrong"

    async def test_every_changed_part_is_noticed(self, client: AsyncClient, issuer: Issuer) -> None:
        header, claims, signature = issuer.token().split(".")
        admin = json.dumps({"sub": "admin"}).encode()

        assert "signature" in await reason(client, f"{header}.{encode(admin).decode()}.{signature}")
        assert "signature" in await reason(client, f"{header}.{claims}.")
        assert "signature" in await reason(client, f"{header}.{claims}.{signature[:-6]}")
        for text in (f"{header}.{claims}.{signature}=", f"{header}.{claims}\t.{signature}"):
            assert "Base64url" in await reason(client, text)

    @pytest.mark.parametrize(
        ("token", "expected"),
        [
            ("", ""),
            ("..", "JSON object"),
            ("a.b", "not a signed JWT"),
            ("a.b.c.d.e", "not a signed JWT"),
            ("é.é.é", "Base64url"),
            ("." * 20_000, "too long"),
            ("x" * 20_000, ""),
        ],
    )
    async def test_text_that_is_no_token(
        self, client: AsyncClient, token: str, expected: str
    ) -> None:
        header = {"Authorization": f"Bearer {token}".encode()}
        with capture_logs() as logs:
            response = await client.get(WHO, headers=header)  # type: ignore[arg-type] # bytes too

        assert response.status_code == 401
        assert expected in logs[0].get("reason", "")

    @pytest.mark.parametrize(
        "payload",
        [
            *(b"[" * 9000, b'{"a":' * 2000, b"null", b"[]", b'"text"', b"{", b"\xff\xfe", b""),
            *(b'{"exp": NaN}', b'{"exp": 1e999}', b'{"exp": ' + b"9" * 5000 + b"}"),
            b'{"sub": "user-1", "sub": "admin"}',
            '{"sub": "user-1"}'.encode("utf-16"),
        ],
    )
    async def test_signed_payloads_that_are_no_claims(
        self, client: AsyncClient, issuer: Issuer, payload: bytes
    ) -> None:
        [(key_id, key)] = issuer.keys.items()

        assert await reason(client, sign({"alg": "ES256", "kid": key_id}, payload, key))

    async def test_several_credentials(self, client: AsyncClient, issuer: Issuer) -> None:
        token = issuer.token()
        twice = [("Authorization", f"Bearer {token}")] * 2

        assert (await client.get(WHO, headers=twice)).status_code == 401
        assert (await who(client, token, **{"X-API-Key": "key"})).status_code == 401


class TestKeys:
    async def test_a_new_key_is_loaded_once_and_an_old_one_forgotten(
        self, client: AsyncClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = issuer.token()
        assert (await who(client, old)).status_code == 200
        monkeypatch.setattr(issuer_module, "UNKNOWN_KEY_SECONDS", 0)
        issuer.rotate()
        issuer.delay = 0.1
        issuer.requests.clear()
        new = issuer.token()

        responses = await asyncio.gather(*(who(client, new) for _ in range(20)))

        assert {response.status_code for response in responses} == {200}
        assert issuer.requests == [DISCOVERY_PATH, JWKS_PATH]
        assert "no such key" in await reason(client, old)

    async def test_unknown_keys_do_not_flood_the_issuer_or_block_others(
        self, client: AsyncClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert (await who(client, issuer.token())).status_code == 200
        issuer.requests.clear()
        flood = [issuer.token(header={"kid": str(number)}) for number in range(50)]

        responses = await asyncio.gather(*(who(client, token) for token in flood))

        assert {response.status_code for response in responses} == {401}
        assert issuer.requests == []  # the keys are less than a minute old

        monkeypatch.setattr(issuer_module, "UNKNOWN_KEY_SECONDS", 0)
        issuer.delay = 0.3
        waiting = asyncio.create_task(who(client, flood[0]))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        assert (await who(client, issuer.token())).status_code == 200
        assert time.monotonic() - started < 0.2
        assert (await waiting).status_code == 401

    async def test_keys_stay_in_use_while_the_issuer_is_dead(
        self, app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serve_issuer() as issuer:
            tokens = open_access_tokens(
                Settings(ENV="test", OIDC_ISSUER=issuer.url, OIDC_AUDIENCE=[AUDIENCE])
            )
            access_tokens = await tokens.__aenter__()
            assert isinstance(access_tokens, AccessTokens)
            await access_tokens.identify(issuer.token())
            monkeypatch.setattr(issuer_module, "UNKNOWN_KEY_SECONDS", 0)
        async with connect(app, database, oidc=access_tokens) as client:
            unknown = issuer.token(header={"kid": "unknown"})
            assert "no such key" in await reason(client, unknown)
            assert not access_tokens.issuer.is_available
            assert (await who(client, issuer.token())).status_code == 200
        await tokens.__aexit__(None, None, None)

    @pytest.mark.parametrize(
        "instead",
        [
            misbehaviour.Response(500),
            misbehaviour.Response(200, b"<html>"),
            misbehaviour.Response(200, b"[" * 100_000),
            misbehaviour.Response(200, b'{"issuer": "https://other.example.com"}'),
            misbehaviour.Response(200, b'{"keys": [' + b"1," * 1_000_000 + b"1]}"),
            misbehaviour.Response(302, Location="http://127.0.0.1:1/"),
        ],
    )
    @pytest.mark.parametrize("path", [DISCOVERY_PATH, JWKS_PATH])
    async def test_tokens_wait_for_the_first_keys(
        self,
        app: FastAPI,
        database: Database,
        issuer: Issuer,
        monkeypatch: pytest.MonkeyPatch,
        path: str,
        instead: misbehaviour.Response,
    ) -> None:
        """The service starts without an issuer, and recovers by itself."""
        monkeypatch.setattr(issuer_module, "RETRY_SECONDS", 0.1)
        issuer.overrides[path] = instead

        async with opened(app, database, issuer) as client:
            refused = await who(client, issuer.token())
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert await readiness(client) == (200, "unavailable")
            assert (await client.get(WHO)).status_code == 200
            issuer.overrides.clear()
            for _ in range(100):
                response = await who(client, issuer.token())
                if response.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            assert response.status_code == 200
            assert await readiness(client) == (200, "ok")

    async def test_a_slow_issuer(
        self, app: FastAPI, database: Database, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(documents, "FETCH_SECONDS", 0.2)
        issuer.delay = 0.5

        async with opened(app, database, issuer) as client:
            started = time.monotonic()
            assert (await who(client, issuer.token())).status_code == 503
            assert time.monotonic() - started < 0.4

    async def test_keys_that_cannot_be_used_are_skipped(
        self, app: FastAPI, database: Database, issuer: Issuer
    ) -> None:
        public = issuer.jwks[0]
        issuer.jwks = [
            *(None, {}, {"kty": "AKP", "kid": "pq"}, {"kty": "RSA", "n": "AQ", "e": 3}),
            {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "shared"},
            {**public, "use": "enc", "kid": "encryption"},
            {**public, "use": ["sig"], "kid": "list"},
            {**public, "key_ops": ["sign"], "kid": "operation"},
            public,
        ]

        async with opened(app, database, issuer) as client:
            assert (await who(client, issuer.token())).status_code == 200
            for name in ("encryption", "operation", "list"):
                assert "no such key" in await reason(client, issuer.token(header={"kid": name}))

    async def test_a_slash_at_the_end_of_the_issuer(self, app: FastAPI, database: Database) -> None:
        with serve_issuer("/") as issuer:
            async with opened(app, database, issuer) as client:
                assert (await who(client, issuer.token())).status_code == 200


async def test_without_an_issuer_tokens_are_rejected(
    app: FastAPI, database: Database, issuer: Issuer
) -> None:
    async with connect(app, database, oidc=None) as client:
        assert await reason(client, issuer.token()) == "OIDC_ISSUER is not set"
        assert (await client.get(WHO)).json()[0] == "developer:development"


async def test_without_an_audience_tokens_are_rejected(
    app: FastAPI, database: Database, issuer: Issuer
) -> None:
    async with opened(app, database, issuer, OIDC_AUDIENCE=[]) as client:
        assert await reason(client, issuer.token()) == "OIDC_AUDIENCE is not set"


async def test_middleware_lets_the_endpoint_say_that_the_issuer_is_unavailable(
    database: Database, issuer: Issuer
) -> None:
    """Middleware needs the principal before the endpoint does."""
    issuer.override = misbehaviour.Response(500)
    limited = Settings(ENV="test", RATE_LIMIT="100/minute", OIDC_ISSUER=issuer.url)
    app = create_application(limited)
    app.get(WHO)(lambda: None)
    app.get("/anonymous")(allow_anonymous(lambda: None))
    bearer = {"Authorization": f"Bearer {issuer.token()}"}

    async with (
        open_access_tokens(limited) as access_tokens,
        connect(app, database, limited, rate_limits=True, oidc=access_tokens) as client,
    ):
        response = await client.get(WHO, headers=bearer)
        assert response.status_code == 503
        assert response.headers["RateLimit"]
        assert (await client.get("/anonymous", headers=bearer)).status_code == 200


async def test_clients_of_users(logged_in: AsyncClient, log_in: LogIn) -> None:
    admin = await log_in(Role.ADMIN, sub="root")

    assert (await logged_in.get(WHO)).json() == ["token:ann", *sorted(ROLES[Role.MEMBER])]
    assert (await admin.get(WHO)).json() == ["token:root", *sorted(ROLES[Role.ADMIN])]


def test_the_doctor_examines_the_issuer(run: Run, issuer: Issuer) -> None:
    healthy = run("doctor", OIDC_ISSUER=issuer.url)
    wrong = run("doctor", OIDC_ISSUER=f"{issuer.url}/")

    assert f"{issuer.url}, 1 keys." in healthy.out
    assert f"It calls itself '{issuer.url}'" in wrong.out
