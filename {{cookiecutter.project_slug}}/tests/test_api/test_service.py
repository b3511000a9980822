"""Probes, metrics, headers, API keys and OpenAPI."""

import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
from fastapi import APIRouter, FastAPI, Form, Request, UploadFile
from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from httpx import AsyncClient
from opentelemetry import trace
from pydantic import ByteSize, SecretStr

import main
from main import create_application
from src.api.auth import allow_anonymous
from src.core.config import ROOT, Settings
from src.db.session import Database
from tests.fixtures.client import HEADERS, application, connect, served
from tests.fixtures.environment import API
from tests.fixtures.notes import NOTES

KEY = "a-key-of-sixteen-characters"
LIVE = f"{API}/health/live"
DOCUMENTATION = ("/api/docs", "/api/redoc", "/api/openapi.json")
NOTE = NOTES + "{note_id}"


def path_of(url: str | None) -> str:
    """Return the path, or skip the test if you disabled the page."""
    return url or pytest.skip("the page is turned off")


def test_commands_of_fastapi_find_the_application() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["fastapi"]

    assert pkgutil.resolve_name(options["entrypoint"]) is main.app


class TestHealth:
    async def test_probes_and_app_info(self, client: AsyncClient, settings: Settings) -> None:
        assert (await client.get(LIVE)).json() == {"status": "ok"}
        ready = {"status": "ok", "checks": {"database": "ok"}}
        assert (await client.get(f"{API}/health/ready")).json() == ready
        assert (await client.get(f"{API}/app-info")).json() == {
            "name": settings.PROJECT_NAME,
            "description": settings.PROJECT_DESCRIPTION,
            "version": settings.VERSION,
            "environment": "test",
        }

    async def test_pages_can_be_disabled(self, settings: Settings, database: Database) -> None:
        pages = ["app-info", "docs", "metrics"]
        changed = settings.model_copy(update={"DISABLED_PAGES": pages})
        client = connect(create_application(changed), database, changed)

        for path in (f"{API}/app-info", "/metrics", *DOCUMENTATION):
            assert (await client.get(path)).status_code == 404, path


class TestRequestId:
    async def test_a_valid_id_is_used(self, client: AsyncClient) -> None:
        given = uuid4().hex

        response = await client.get("/nowhere", headers={"X-Request-ID": given})

        assert response.headers["x-request-id"] == response.json()["request_id"] == given

    @pytest.mark.parametrize("given", [None, "", "x" * 5000, "forged\tline"])
    async def test_an_invalid_id_is_replaced(self, client: AsyncClient, given: str | None) -> None:
        headers = {} if given is None else {"X-Request-ID": given}

        response = await client.get(LIVE, headers=headers)

        assert len(response.headers["x-request-id"]) == 32


class TestSecurityHeaders:
    @pytest.mark.parametrize("path", [LIVE, "/nowhere", "/metrics"])
    async def test_every_response_has_them(self, client: AsyncClient, path: str) -> None:
        headers = (await client.get(path)).headers

        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")

    @pytest.mark.parametrize(
        ("seconds", "scheme", "expected"),
        [
            (None, "https", None),
            (3600, "http", None),  # RFC 6797: never over an insecure transport
            (3600, "https", "max-age=3600"),
            (0, "https", "max-age=0"),
        ],
    )
    async def test_hsts_is_optional_and_only_over_https(
        self,
        settings: Settings,
        committing_database: Database,
        seconds: int | None,
        scheme: str,
        expected: str | None,
    ) -> None:
        app = application(settings.model_copy(update={"HSTS_SECONDS": seconds}))

        @app.get("/bug")
        async def bug() -> None:
            raise RuntimeError

        statuses = {LIVE: 200, "/metrics": 200, NOTES[:-1]: 307, "/nowhere": 404, "/bug": 500}
        headers = HEADERS | {"X-Forwarded-Proto": scheme}
        async with served(app, committing_database) as address, AsyncClient() as client:
            for path, status in statuses.items():
                response = await client.get(f"http://{address}{path}", headers=headers)
                assert response.status_code == status
                assert response.headers.get("strict-transport-security") == expected, path

    async def test_documentation_works_behind_a_proxy_with_a_prefix(
        self, app: FastAPI, database: Database
    ) -> None:
        path = f"/proxy{path_of(app.docs_url)}"

        response = await connect(app, database, root_path="/proxy").get(path)

        assert response.status_code == 200
        assert f"{path}/swagger-ui-bundle.js" in response.text
        assert "script-src 'self'" in response.headers["content-security-policy"]

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"content-type": "text/html"}, "default-src 'self'; script-src 'self'"),
            ({"content-type": "text/plain"}, "default-src 'none'"),
            ({"Content-Security-Policy": "img-src *"}, "img-src *"),
        ],
        ids=["page", "text", "own policy"],
    )
    async def test_header_of_the_response_wins(
        self, fresh_app: FastAPI, database: Database, given: dict[str, str], expected: str
    ) -> None:
        @fresh_app.get("/page")
        async def page() -> Response:
            return Response(b"Lamp", headers={**given, "X-Frame-Options": "SAMEORIGIN"})

        headers = (await connect(fresh_app, database).get("/page")).headers

        assert headers.get_list("x-frame-options") == ["SAMEORIGIN"]
        (policy,) = headers.get_list("content-security-policy")
        assert policy.startswith(expected)

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_a_response_to_a_principal_is_private(
        self, fresh_app: FastAPI, database: Database, method: str
    ) -> None:
        """Shared caches may store others, also if the request has a cookie or an API key."""
        client = connect(fresh_app, database)

        @fresh_app.get("/page")
        async def page() -> None: ...

        @fresh_app.get("/own")
        async def own() -> Response:
            return Response(headers={"Cache-Control": "no-store"})

        assert (await client.request(method, "/page")).headers["cache-control"] == (
            "private, no-cache"
        )
        assert (await client.request(method, "/own")).headers["cache-control"] == "no-store"
        assert "cache-control" not in (await client.request(method, LIVE)).headers

    async def test_an_unchanged_page_keeps_its_policy(
        self, fresh_app: FastAPI, database: Database, tmp_path: Path
    ) -> None:
        (tmp_path / "index.html").write_text("Lamp")
        fresh_app.mount("/site", StaticFiles(directory=tmp_path, html=True))
        client = connect(fresh_app, database)
        etag = (await client.get("/site/")).headers["etag"]

        response = await client.get("/site/", headers={"If-None-Match": etag})

        assert response.status_code == 304
        assert "content-security-policy" not in response.headers


class TestCors:
    ORIGIN = "https://shop.example"
    SUBDOMAINS = "https://*.shop.example"

    @pytest.mark.parametrize(
        ("origins", "asked", "allowed", "credentials"),
        [
            ([ORIGIN], ORIGIN, ORIGIN, "true"),
            ([ORIGIN], "https://x.example", None, "true"),
            (["HTTPS://Shop.example:443/"], ORIGIN, ORIGIN, "true"),
            ([SUBDOMAINS], "https://eu.1.shop.example", "https://eu.1.shop.example", "true"),
            ([SUBDOMAINS], "https://xshop.example", None, "true"),
            ([SUBDOMAINS], ORIGIN, None, "true"),
            (["*"], ORIGIN, "*", None),
            ([], ORIGIN, None, None),
        ],
        ids=["named", "another", "normal", "wildcard", "suffix", "parent", "any", "none"],
    )
    async def test_preflight(
        self,
        database: Database,
        origins: list[str],
        asked: str,
        allowed: str | None,
        credentials: str | None,
    ) -> None:
        settings = Settings(ENV="test", CORS_ORIGINS=origins)
        client = connect(create_application(settings), database, settings)
        preflight = {"Origin": asked, "Access-Control-Request-Method": "PATCH"}

        headers = (await client.options(LIVE, headers=preflight)).headers

        assert headers.get("access-control-allow-origin") == allowed
        assert headers.get("access-control-allow-credentials") == credentials


class TestApiKey:
    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("given", [None, "", "wrong", KEY[:-1], "schlüssel"])
    async def test_each_endpoint_requires_a_valid_key(
        self, app: FastAPI, database: Database, given: str | None, method: str
    ) -> None:
        settings = Settings(ENV="test", API_KEYS=[SecretStr("other-key"), SecretStr(KEY)])
        locked = connect(app, database, settings)
        headers = [] if given is None else [(b"X-API-Key", given.encode())]

        allowed = await locked.post(NOTES, json={"text": "Lamp"}, headers={"X-API-Key": KEY})
        response = await locked.request(method, NOTES, json={"text": "Lamp"}, headers=headers)

        assert allowed.status_code == 201
        assert (await locked.get(LIVE, headers=headers)).status_code == 200
        assert response.status_code == 401
        assert response.headers["www-authenticate"]
        assert response.headers["content-type"] == "application/problem+json"


class TestIfMatch:
    @pytest.fixture
    async def note(self, client: AsyncClient) -> str:
        created = await client.post(NOTES, json={"text": "Lamp"})
        path: str = created.headers["location"]
        return path

    @pytest.mark.parametrize("tags", [[], ['"1"'], ["*"], ['"7", "1"'], ['"9"', '"1"']])
    async def test_the_current_version_matches(
        self, client: AsyncClient, note: str, tags: list[str]
    ) -> None:
        headers = [("If-Match", tag) for tag in tags]

        response = await client.patch(note, json={"text": "Light"}, headers=headers)

        assert response.status_code == 200

    @pytest.mark.parametrize(
        "tag", ['"2"', 'W/"1"', '"x"', "", "1", '"1', '"01"', '"' + "9" * 5000 + '"']
    )
    async def test_any_other_version_returns_412(
        self, client: AsyncClient, note: str, tag: str
    ) -> None:
        response = await client.patch(note, json={"text": "x"}, headers={"If-Match": tag})

        assert response.status_code == 412
        assert response.json()["type"] == "urn:problem-type:stale-version"
        assert (await client.get(note)).json()["text"] == "Lamp"


class TestUploads:
    @pytest.fixture
    def small(self, database: Database) -> AsyncClient:
        """An application with a limit of 1 KiB, and a route with one of 4 KiB."""
        settings = Settings(ENV="test", MAX_BODY_SIZE=ByteSize(1024))
        app = create_application(settings)
        router = APIRouter()

        @router.post("/upload", max_body_size=4096)
        async def upload(file: UploadFile, label: Annotated[str, Form()]) -> tuple[str, int]:
            return label, len(await file.read())

        app.include_router(router, prefix="/v1")
        return connect(app, database, settings)

    @pytest.mark.parametrize("key", [None, "a-key"])
    @pytest.mark.parametrize(("size", "status"), [(3000, 200), (5000, 413)])
    async def test_limit_of_the_route_replaces_the_setting(
        self, small: AsyncClient, key: str | None, size: int, status: int
    ) -> None:
        headers = {"Idempotency-Key": key} if key else {}

        response = await small.post(
            "/v1/upload", files={"file": b"x" * size}, data={"label": "Lamp"}, headers=headers
        )

        assert response.status_code == status
        if status == 200:
            assert response.json() == ["Lamp", size]
        else:
            assert response.headers["content-type"] == "application/problem+json"
            assert "4096" in response.json()["detail"]


class TestHead:
    @pytest.mark.parametrize("path", [LIVE, NOTES, "/nowhere", "/metrics", "/api/docs"])
    async def test_headers_are_those_of_get(self, client: AsyncClient, path: str) -> None:
        get, head = await client.get(path), await client.head(path)

        assert (head.status_code, head.content) == (get.status_code, b"")
        # A compressing middleware adds the last two if there is a body.
        differ = {"x-request-id", "content-length", "content-encoding", "vary"}
        for name in get.headers.keys() - differ:
            assert head.headers[name] == get.headers[name]
        if path != "/metrics" and "content-encoding" not in head.headers:
            assert head.headers["content-length"] == str(len(get.content))

    async def test_declared_head_is_used(self, fresh_app: FastAPI, database: Database) -> None:
        fresh_app.get("/both")(lambda: "get")
        fresh_app.head("/both", status_code=202)(lambda: None)

        assert (await connect(fresh_app, database).head("/both")).status_code == 202


class TestMetrics:
    @pytest.mark.parametrize(
        ("path", "route"),
        [
            ("/files/one.txt", "/files"),
            ("/files/unknown", "/files"),
            ("/sub/notes/1", "/sub/notes/{note_id}"),
            ("/sub/unknown", "/sub"),
            ("/tenants/7/x", "/tenants/{tenant}"),
            ("/v1/inner/x", "/v1/inner"),
        ],
    )
    async def test_requests_to_mounts_have_the_path_of_the_mount(
        self, fresh_app: FastAPI, database: Database, tmp_path: Path, path: str, route: str
    ) -> None:
        (tmp_path / "one.txt").write_text("Lamp")
        sub, router = FastAPI(), APIRouter()
        sub.get("/notes/{note_id}")(lambda note_id: note_id)
        router.mount("/inner", FastAPI())
        fresh_app.mount("/files", StaticFiles(directory=tmp_path))
        fresh_app.mount("/sub", sub)
        fresh_app.mount("/tenants/{tenant}", PlainTextResponse("Lamp"))
        fresh_app.include_router(router, prefix="/v1")
        client = connect(fresh_app, database)

        for method in ("GET", "HEAD"):
            response = await client.request(method, path)
            labels = f'method="{method}",route="{route}",status="{response.status_code}"'
            assert "http_requests_total{" + labels in (await client.get("/metrics")).text

    async def test_labels_are_route_templates_instead_of_paths(self, client: AsyncClient) -> None:
        await client.get(f"{NOTES}{uuid4()}")
        await client.get("/an/invented/path")
        await client.request("INVENTED", NOTES)
        await client.get("/metrics")

        response = await client.get("/metrics")

        labels = 'method="GET",route="' + NOTES + '{note_id}"'
        assert response.headers["content-type"].startswith("text/plain")
        assert "http_requests_total{" + labels + ',status="404"}' in response.text
        assert "http_request_duration_seconds_count{" + labels + "}" in response.text
        assert 'route="/metrics"' in response.text
        assert 'route="unmatched"' in response.text
        assert "invented" not in response.text.lower()


class TestDocumentation:
    @pytest.mark.parametrize("page", ["docs_url", "redoc_url"])
    async def test_pages_load_nothing_from_other_hosts(
        self, app: FastAPI, client: AsyncClient, page: str
    ) -> None:
        response = await client.get(path_of(getattr(app, page)))

        assert response.status_code == 200
        assert path_of(app.openapi_url) in response.text
        assert "//cdn" not in response.text
        assert "fonts.googleapis" not in response.text
        assert "http" not in response.headers["content-security-policy"]
        assets = re.findall(r'(?:src|href)="(/[^"]+)"', response.text)
        assert assets
        for path in assets:
            assert (await client.get(path)).status_code == 200

    async def test_api_prefix_applies_to_all_paths(self, database: Database) -> None:
        settings = Settings(ENV="test", API_PREFIX="/shop")
        app = create_application(settings)
        client = connect(app, database, settings)

        pages = filter(None, (app.docs_url, app.redoc_url, app.openapi_url))
        for path in ("/shop/v1/health/live", *pages):
            assert path.startswith("/shop/")
            assert (await client.get(path)).status_code == 200

    @pytest.mark.parametrize("env", ["development", "test"])
    @pytest.mark.parametrize(
        ("path", "page"), [("/", "docs"), ("/docs", "docs"), ("/redoc", "redoc"), ("/api", "docs")]
    )
    async def test_short_paths_redirect_in_development(
        self, database: Database, env: Literal["development", "test"], path: str, page: str
    ) -> None:
        settings = Settings(ENV=env, API_PREFIX="/api")
        app = create_application(settings)
        path_of(getattr(app, f"{page}_url"))
        client = connect(app, database, settings, root_path="/proxy")

        response = await client.get(f"/proxy{path}")

        if env == "development":
            assert response.headers["location"] == f"/proxy/api/{page}"
        else:
            assert response.status_code == 404
        app.get(path)(lambda: "own")
        assert (await client.get(f"/proxy{path}")).json() == "own"


class TestOpenAPI:
    @pytest.fixture
    def document(self, app: FastAPI) -> Any:
        return app.openapi()

    @pytest.mark.parametrize(
        ("method", "path", "statuses"),
        [
            ("get", LIVE, "200"),
            ("get", NOTES, "200 401 503"),
            ("post", NOTES, "201 400 401 409 413 422 503"),
            ("get", NOTE, "200 401 404 422 503"),
            ("patch", NOTE, "200 400 401 404 409 412 413 422 503"),
            ("delete", NOTE, "204 401 404 409 412 422 503"),
        ],
    )
    async def test_errors_follow_from_parameters_body_and_dependencies(
        self, document: Any, method: str, path: str, statuses: str
    ) -> None:
        responses = document["paths"][path][method]["responses"]

        assert responses.keys() >= set(statuses.split())
        for status, response in responses.items():
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"]
        assert ("401" in responses) == (path != LIVE)
        if method == "patch":
            assert responses["404"]["description"] == "Note not found"
            assert responses["409"]["description"] == "Note refused"
        assert {"Problem", "InvalidField"} <= document["components"]["schemas"].keys()


async def test_debug_shows_the_traceback(database: Database) -> None:
    settings = Settings(ENV="test", DEBUG=True)
    app = create_application(settings)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("seen by the developer")

    client = connect(app, database, settings)
    with pytest.raises(RuntimeError, match="seen by the developer"):
        await client.get("/bug")


def test_application_that_has_not_started_says_so(
    fresh_app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    assert TestClient(fresh_app).get(NOTES).status_code == 500
    assert "use the fixture `client` or `sync_client`" in caplog.text


def test_synchronous_client_commits(sync_client: TestClient) -> None:
    created = sync_client.post(NOTES, json={"text": "Lamp"})

    assert created.status_code == 201
    assert sync_client.get(created.headers["location"]).json() == created.json()


class Traces(trace.TracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return trace.NoOpTracer()


@pytest.mark.parametrize(("sdk", "configured"), [("yes", None), (None, "true"), (None, None)])
async def test_telemetry_needs_the_sdk(
    database: Database, monkeypatch: pytest.MonkeyPatch, sdk: str | None, configured: str | None
) -> None:
    monkeypatch.setattr("main.find_spec", lambda _: sdk)
    monkeypatch.setattr(trace, "get_tracer_provider", Traces)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", configured or "")
    app = create_application()
    found = []

    @app.get("/traced")
    @allow_anonymous
    async def traced(request: Request) -> None:
        found.append(request.scope.get("fastapi.telemetry") is not None)

    assert (await connect(app, database).get("/traced")).status_code == 200
    assert found == [bool(sdk or configured)]
