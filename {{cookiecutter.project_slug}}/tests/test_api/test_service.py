"""What surrounds the resources: probes, metrics, headers, keys, documents."""

from uuid import uuid4

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import SecretStr

from main import create_application
from src.core.config import Settings
from src.db.session import Database
from tests.fixtures.client import connect

KEY = "a-key-of-sixteen-characters"


class TestHealth:
    async def test_live(self, client: AsyncClient) -> None:
        response = await client.get("/api/v1/health/live")

        assert (response.status_code, response.json()) == (200, {"status": "ok"})

    async def test_ready(self, client: AsyncClient) -> None:
        response = await client.get("/api/v1/health/ready")

        assert response.status_code == 200
        assert response.json() == {"status": "ok", "checks": {"database": "ok"}}

    async def test_app_info(self, client: AsyncClient, settings: Settings) -> None:
        assert (await client.get("/api/v1/app-info")).json() == {
            "name": settings.PROJECT_NAME,
            "description": settings.PROJECT_DESCRIPTION,
            "version": settings.VERSION,
            "environment": "test",
        }


class TestRequestId:
    async def test_is_made_where_none_is_given(self, client: AsyncClient) -> None:
        response = await client.get("/api/v1/health/live")

        assert len(response.headers["x-request-id"]) == 32

    async def test_is_passed_on(self, client: AsyncClient) -> None:
        given = uuid4().hex

        response = await client.get("/nowhere", headers={"X-Request-ID": given})

        assert response.headers["x-request-id"] == given
        assert response.json()["request_id"] == given

    @pytest.mark.parametrize("given", ["", "x" * 5000, "forged\tline"])
    async def test_is_replaced_where_it_cannot_be_one(
        self, client: AsyncClient, given: str
    ) -> None:
        response = await client.get("/api/v1/health/live", headers={"X-Request-ID": given})

        assert len(response.headers["x-request-id"]) == 32


class TestSecurityHeaders:
    @pytest.mark.parametrize("path", ["/api/v1/health/live", "/nowhere", "/api/openapi.json"])
    async def test_every_answer_has_them(self, client: AsyncClient, path: str) -> None:
        headers = (await client.get(path)).headers

        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")

    @pytest.mark.parametrize("path", ["/api/docs", "/api/redoc"])
    async def test_own_pages_may_run_own_scripts_only(self, client: AsyncClient, path: str) -> None:
        policy = (await client.get(path)).headers["content-security-policy"]

        assert "script-src 'self'" in policy
        assert "http" not in policy

    async def test_pages_work_behind_a_prefix_of_a_proxy(
        self, app: FastAPI, database: Database
    ) -> None:
        client = connect(app, database, root_path="/proxy")

        response = await client.get("/proxy/api/docs")

        assert response.status_code == 200
        assert "/proxy/api/docs/swagger-ui-bundle.js" in response.text
        assert "script-src 'self'" in response.headers["content-security-policy"]


class TestCors:
    ORIGIN = "https://shop.example"

    @staticmethod
    def client_for(database: Database, *origins: str) -> AsyncClient:
        settings = Settings(ENV="test", CORS_ORIGINS=list(origins))
        return connect(create_application(settings), database, settings)

    async def preflight(self, client: AsyncClient, origin: str) -> dict[str, str]:
        headers = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
        return dict((await client.options("/api/v1/items/", headers=headers)).headers)

    async def test_a_named_origin_may_send_credentials(self, database: Database) -> None:
        headers = await self.preflight(self.client_for(database, self.ORIGIN), self.ORIGIN)

        assert headers["access-control-allow-origin"] == self.ORIGIN
        assert headers["access-control-allow-credentials"] == "true"

    async def test_another_may_not(self, database: Database) -> None:
        headers = await self.preflight(self.client_for(database, self.ORIGIN), "https://x.example")

        assert "access-control-allow-origin" not in headers

    async def test_any_origin_means_no_credentials(self, database: Database) -> None:
        headers = await self.preflight(self.client_for(database, "*"), self.ORIGIN)

        assert headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in headers

    async def test_no_origin_is_allowed_by_default(self, client: AsyncClient) -> None:
        assert "access-control-allow-origin" not in await self.preflight(client, self.ORIGIN)


class TestApiKey:
    @pytest.fixture
    def locked(self, app: FastAPI, database: Database) -> AsyncClient:
        settings = Settings(ENV="test", API_KEYS=[SecretStr("other-key"), SecretStr(KEY)])
        return connect(app, database, settings)

    async def test_any_of_the_keys_opens(self, locked: AsyncClient) -> None:
        response = await locked.post(
            "/api/v1/items/", json={"name": "Lamp"}, headers={"X-API-Key": KEY}
        )

        assert response.status_code == 201

    @pytest.mark.parametrize("given", [None, "", "wrong", KEY[:-1], "schlüssel"])
    async def test_nothing_else_does(self, locked: AsyncClient, given: str | None) -> None:
        headers = [] if given is None else [(b"X-API-Key", given.encode())]

        response = await locked.post("/api/v1/items/", json={"name": "Lamp"}, headers=headers)

        assert response.status_code == 401
        assert response.headers["www-authenticate"]
        assert response.headers["content-type"] == "application/problem+json"

    async def test_reading_needs_none(self, locked: AsyncClient) -> None:
        assert (await locked.get("/api/v1/items/")).status_code == 200


class TestMetrics:
    async def test_counts_by_template_and_never_by_path(self, client: AsyncClient) -> None:
        await client.get(f"/api/v1/items/{uuid4()}")
        await client.get("/an/invented/path")
        await client.request("INVENTED", "/api/v1/items/")

        await client.get("/metrics")
        text = (await client.get("/metrics")).text

        assert 'route="/metrics"' in text
        assert (
            'http_requests_total{method="GET",route="/api/v1/items/{item_id}",status="404"}' in text
        )
        assert 'route="unmatched"' in text
        assert "invented" not in text.lower()

    async def test_measures_durations(self, client: AsyncClient) -> None:
        await client.get("/api/v1/health/live")

        response = await client.get("/metrics")

        assert response.headers["content-type"].startswith("text/plain")
        assert 'http_request_duration_seconds_count{method="GET"' in response.text


class TestDocs:
    @pytest.mark.parametrize("page", ["docs", "redoc"])
    async def test_pages_need_nothing_from_elsewhere(self, client: AsyncClient, page: str) -> None:
        response = await client.get(f"/api/{page}")

        assert response.status_code == 200
        assert "/api/openapi.json" in response.text
        assert "//cdn" not in response.text
        assert "fonts.googleapis" not in response.text

    @pytest.mark.parametrize(
        "path", ["docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "redoc/redoc.standalone.js"]
    )
    async def test_assets_come_from_here(self, client: AsyncClient, path: str) -> None:
        assert (await client.get(f"/api/{path}")).status_code == 200

    async def test_document_says_how_errors_look(self, client: AsyncClient) -> None:
        document = (await client.get("/api/openapi.json")).json()

        responses = document["paths"]["/api/v1/items/{item_id}"]["patch"]["responses"]
        for status in ("400", "401", "404", "409", "412", "422", "503"):
            assert list(responses[status]["content"]) == ["application/problem+json"]

    async def test_prefix_moves_all_of_it(self, database: Database) -> None:
        settings = Settings(ENV="test", API_PREFIX="/shop")
        client = connect(create_application(settings), database, settings)

        for path in ("/shop/docs", "/shop/redoc", "/shop/openapi.json", "/shop/v1/items/"):
            assert (await client.get(path)).status_code == 200


async def test_debug_shows_the_traceback(database: Database) -> None:
    settings = Settings(ENV="test", DEBUG=True)
    app = create_application(settings)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("seen by the developer")

    client = connect(app, database, settings)
    with pytest.raises(RuntimeError, match="seen by the developer"):
        await client.get("/bug")
