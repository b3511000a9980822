"""Rate limits of callers and of routes."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import structlog
from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import APIKeyHeader
from httpx import AsyncClient, Response
from prometheus_client import REGISTRY
from pydantic import SecretStr
from sqlalchemy import URL
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket
from structlog.testing import capture_logs

from main import create_application
from src.api.auth import get_principal
from src.api.rate_limits import get_caller, rate_limit
from src.auth import api_keys
from src.core import rate_limits
from src.core.config import Settings
from src.core.rate_limits import Counted, MemoryCounters
from src.db.session import Database, open_database
from src.services import api_key
from tests.fixtures.client import HEADERS, connect, create_key, served
from tests.fixtures.environment import API
from tests.test_api.test_idempotency import assert_problem, is_replay, keyed

INFO = f"{API}/app-info"
WORK = "/work"
KEYS = ["8f14e45fceea167a5a36dedd4bea2543", "c9f0f895fb98ab9159f51fd0297e236d"]

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def handshakes(
    app: FastAPI, database: Database, settings: Settings | None = None, **options: Any
) -> list[Response]:
    @app.websocket("/socket", **options)
    async def accept(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    headers = HEADERS | HANDSHAKE | {"X-API-Key": KEYS[0]} if settings else HEADERS | HANDSHAKE
    async with (
        served(app, database, settings, rate_limits=True) as host,
        AsyncClient(base_url=f"http://{host}", headers=headers) as client,
    ):
        return [await client.get("/socket") for _ in range(3)]


@pytest.fixture
def limited(settings: Settings) -> Settings:
    keys = [SecretStr(key) for key in KEYS]
    return settings.model_copy(update={"RATE_LIMIT": "2/hour", "API_KEYS": keys})


@pytest.fixture
async def client(limited: Settings, database: Database) -> AsyncGenerator[AsyncClient]:
    app = create_application(limited)
    async with connect(app, database, limited, rate_limits=True) as client:
        yield client


async def statuses(client: AsyncClient, path: str = INFO, **headers: str) -> list[int]:
    return [(await client.get(path, headers=headers)).status_code for _ in range(4)]


def fields(response: Response) -> dict[str, list[str]]:
    names = ("ratelimit-policy", "ratelimit")
    return {name: response.headers.get_list(name) for name in names}


class TestOfAllRequests:
    async def test_rejects_requests_beyond_the_quota(self, client: AsyncClient) -> None:
        first, _, third = [await client.get(INFO) for _ in range(3)]

        assert first.status_code == 200
        assert first.headers["ratelimit-policy"] == '"2/hour";q=2;w=3600'
        assert first.headers["ratelimit"] == '"2/hour";r=1;t=3600'
        assert_problem(third, 429)
        assert third.headers["ratelimit"].startswith('"2/hour";r=0;t=')
        assert 0 < int(third.headers["retry-after"]) <= 3600
        assert "x-frame-options" in third.headers

    async def test_counts_unknown_paths_and_each_method(self, client: AsyncClient) -> None:
        assert (await client.post("/nowhere")).status_code == 404
        assert (await client.head(INFO)).status_code == 200
        assert (await client.delete(INFO)).status_code == 429

    @pytest.mark.parametrize("path", [f"{API}/health/live", f"{API}/health/ready", "/metrics"])
    async def test_exempts_probes_and_metrics(self, client: AsyncClient, path: str) -> None:
        assert await statuses(client, path) == [200] * 4

    async def test_counts_each_valid_key_separately(self, client: AsyncClient) -> None:
        for key in KEYS:
            assert await statuses(client, **{"X-API-Key": key}) == [200, 200, 429, 429]
        assert await statuses(client) == [200, 200, 429, 429]

    async def test_counts_wrong_keys_by_address(self, client: AsyncClient) -> None:
        for number in range(4):
            response = await client.get(INFO, headers={"X-API-Key": f"{KEYS[0]}{number}"})
        assert response.status_code == 429
        assert (await client.get(INFO, headers={"X-API-Key": KEYS[0]})).status_code == 200

    async def test_counts_a_principal_wherever_it_is(
        self, limited: Settings, database: Database
    ) -> None:
        """Its key has one count for all addresses, and wrong keys count for the address."""
        app = create_application(limited)
        key = {"X-API-Key": await create_key(database)}
        async with (
            served(app, database, limited, rate_limits=True) as host,
            AsyncClient(base_url=f"http://{host}", headers=HEADERS) as proxy,
        ):
            found = [
                (await proxy.get(INFO, headers={"X-Forwarded-For": address, **sent})).status_code
                for sent in (key, {"X-API-Key": "wrong"})
                for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1")
            ]
        assert found == [200, 200, 429, 429, 200, 200, 200, 429]

    async def test_looks_up_credentials_once(
        self, limited: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = create_application(limited)
        app.get(WORK, dependencies=[rate_limit("5/day"), Depends(get_principal)])(lambda: "done")
        client = connect(app, database, limited, rate_limits=True)
        key = api_keys.format_key("lamps", api_keys.new_credential())
        monkeypatch.setattr(api_key, "log", structlog.get_logger())

        with capture_logs() as lines:
            assert (await client.get(WORK, headers={"X-API-Key": key})).status_code == 401

        assert [each["event"] for each in lines].count("credentials_rejected") == 1

    async def test_is_503_if_credentials_cannot_be_looked_up(self, limited: Settings) -> None:
        """The middleware leaves the error to the endpoint, and counts by address."""
        app = create_application(limited)
        app.get(WORK)(lambda: "done")
        key = api_keys.format_key("lamps", api_keys.new_credential())
        nowhere = URL.create("postgresql+asyncpg", host="127.0.0.1", port=1, database="none")
        async with open_database(nowhere, pool_size=1) as database:
            client = connect(app, database, limited, rate_limits=True)
            found = await statuses(client, WORK, **{"X-API-Key": key})

        assert found == [503, 503, 429, 429]

    async def test_counts_the_addresses_that_a_trusted_proxy_sends(
        self, limited: Settings, database: Database
    ) -> None:
        app = create_application(limited)
        async with (
            served(app, database, limited, rate_limits=True) as host,
            AsyncClient(base_url=f"http://{host}", headers=HEADERS) as proxy,
        ):
            for address in ("192.0.2.1", "192.0.2.2"):
                header = {"X-Forwarded-For": f"198.51.100.9, {address}"}
                assert await statuses(proxy, **header) == [200, 200, 429, 429]

    async def test_includes_websocket_handshakes(
        self, limited: Settings, database: Database
    ) -> None:
        accepted, _, rejected = await handshakes(create_application(limited), database, limited)

        assert accepted.status_code == 101
        assert rejected.status_code == rejected.json()["status"] == 429
        assert "retry-after" in rejected.headers


class TestOfARoute:
    @pytest.fixture
    def app(self, fresh_app: FastAPI) -> FastAPI:
        router = APIRouter(prefix="/limited")

        @router.post(WORK, dependencies=[rate_limit("1/minute")])
        async def work() -> str:
            return "done"

        user = APIKeyHeader(name="X-User")

        @router.get("/mine", dependencies=[rate_limit("1/day", by=user), rate_limit("3/minute")])
        async def mine() -> str:
            return "done"

        fresh_app.include_router(router, prefix="/one")
        fresh_app.include_router(router, prefix="/two")
        return fresh_app

    async def test_rejects_requests_beyond_the_quota(
        self, app: FastAPI, database: Database
    ) -> None:
        client = connect(app, database, rate_limits=True)

        first = await client.post(f"/one/limited{WORK}")
        second = await client.post(f"/one/limited{WORK}")

        assert fields(first)["ratelimit-policy"] == ['"1/minute";q=1;w=60']
        assert_problem(second, 429)
        assert int(second.headers["retry-after"]) <= 60
        assert (await client.post(f"/two/limited{WORK}")).status_code == 200
        assert "429" in app.openapi()["paths"][f"/one/limited{WORK}"]["post"]["responses"]

    async def test_limits_each_user(self, app: FastAPI, database: Database) -> None:
        client = connect(app, database, rate_limits=True)
        ann = await client.get("/one/limited/mine", headers={"X-User": "Ann"})
        ben = await client.get("/one/limited/mine", headers={"X-User": "Ben"})
        again = await client.get("/one/limited/mine", headers={"X-User": "Ann"})

        assert [each.status_code for each in (ann, ben, again)] == [200, 200, 429]
        assert len(fields(ann)["ratelimit"]) == 2

    async def test_applies_to_replayed_responses(
        self, app: FastAPI, committing_database: Database
    ) -> None:
        client = connect(app, committing_database, rate_limits=True)
        headers = keyed()
        await client.post(f"/one/limited{WORK}", headers=headers)
        second = await client.post(f"/one/limited{WORK}", headers=headers)

        assert_problem(second, 429)
        assert not is_replay(second)

    async def test_applies_to_websockets(self, fresh_app: FastAPI, database: Database) -> None:
        limit = rate_limit("1/minute")
        responses = await handshakes(fresh_app, database, dependencies=[limit])

        assert [each.status_code for each in responses] == [101, 429, 429]

    async def test_is_off_in_tests(self, app: FastAPI, database: Database) -> None:
        client = connect(app, database)

        for _ in range(3):
            assert (await client.post(f"/one/limited{WORK}")).status_code == 200


async def test_requests_are_served_without_the_store(limited: Settings, database: Database) -> None:
    async def fail(_key: str, _seconds: int) -> Counted | None:
        return None

    client = connect(create_application(limited), database, limited, count_requests=fail)
    name = "rate_limit_unchecked_requests_total"
    before = REGISTRY.get_sample_value(name) or 0

    assert await statuses(client) == [200] * 4
    assert REGISTRY.get_sample_value(name) == before + 4


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("testclient", "other", False),
    ],
)
async def test_ipv6_addresses_of_a_network_are_one_caller(
    settings: Settings, one: str, other: str, *, is_same: bool
) -> None:
    async def caller(host: str) -> str:
        state = {"settings": settings}
        scope = {"type": "http", "client": (host, 1), "headers": [], "state": state}
        return await get_caller(HTTPConnection(scope))

    assert (await caller(one) == await caller(other)) is is_same


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters of active callers survive."""
    monkeypatch.setattr(rate_limits, "MAX_COUNTERS", 10)
    counters = MemoryCounters()
    for number in range(100):
        await counters.count(str(number), 60)
        active = await counters.count("active", 60)

    assert active.number == 100
    assert len(vars(counters)["_windows"]) == 10


async def test_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(rate_limits, "monotonic", lambda: now)
    counters = MemoryCounters()
    counted = [await counters.count("key", 60)]
    now += 59
    counted.append(await counters.count("key", 60))
    now += 1
    counted.append(await counters.count("key", 60))

    assert counted == [(1, 60), (2, 1), (1, 60)]


@pytest.mark.parametrize("rate", ["0/minute", "5", "5/week", "-1/minute", "five/minute", "5/"])
def test_invalid_rates_are_refused(rate: str) -> None:
    with pytest.raises(ValueError, match="300/minute"):
        rate_limit(rate)
    with pytest.raises(ValueError, match="RATE_LIMIT"):
        Settings(RATE_LIMIT=rate)
