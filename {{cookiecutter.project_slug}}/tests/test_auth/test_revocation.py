"""When changes of API keys take effect, with several clients, connections and processes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import pytest
from httpx import AsyncClient
from pydantic import SecretStr
from sqlalchemy import URL, make_url, select, text

from src.api.auth import CurrentPrincipal
from src.auth.key_uses import record_key_uses
from src.core.config import Settings
from src.db.models.api_key import ApiKey
from src.db.session import Database, open_database
from src.domain.api_key import ApiKeyInRotationError, ApiKeyNotFoundError
from src.services.api_key import ApiKeyService, IssuedKey
from tests.fixtures.client import application, connect
from tests.fixtures.environment import API
from tests.fixtures.statements import until_waiting

SETTING = "8f14e45fceea167a5a36dedd4bea2543"
UNREACHABLE = make_url("postgresql+asyncpg://app:pw@127.0.0.1:1/app")
WHO = f"{API}/who-calls"
GRACE = timedelta(hours=1)


def client_of(database: Database, settings: Settings, **state: Any) -> AsyncClient:
    """Connect to an application that needs credentials, and has an endpoint without queries."""
    settings = settings.model_copy(update={"API_KEYS": [SecretStr(SETTING)]})
    app = application(settings)

    @app.get(WHO)
    async def who_calls(principal: CurrentPrincipal) -> str:
        return str(principal)

    return connect(app, database, settings, **state)


@pytest.fixture
def client(committing_database: Database, settings: Settings) -> AsyncClient:
    return client_of(committing_database, settings)


@pytest.fixture
async def key(committing_database: Database) -> IssuedKey:
    async with committing_database.transaction() as db:
        return await ApiKeyService.create(db, "sample", "importer", ())


async def status(client: AsyncClient, text: str) -> int:
    return (await client.get(WHO, headers={"X-API-Key": text})).status_code


async def test_a_key_is_refused_from_its_commit_on(
    client: AsyncClient,
    key: IssuedKey,
    committing_url: URL,
    committing_database: Database,
    settings: Settings,
) -> None:
    """No request that starts after the commit is served, whatever requests run then."""
    revoked = asyncio.Event()

    async def use(client: AsyncClient) -> list[tuple[bool, int]]:
        results = []
        for _ in range(60):
            after_commit = revoked.is_set()
            results.append((after_commit, await status(client, key.text)))
        return results

    async with AsyncExitStack() as stack:
        clients = [client] * 3
        for _ in range(2):
            other = await stack.enter_async_context(open_database(committing_url, pool_size=2))
            clients += [client_of(other, settings)] * 3
        for each in clients:
            assert await status(each, key.text) == 200
        users = [asyncio.create_task(use(each)) for each in clients]
        await asyncio.sleep(0.1)
        async with committing_database.transaction() as db:
            await ApiKeyService.revoke(db, "importer")
        revoked.set()
        results = [each for user in users for each in await user]

    assert {code for after, code in results if after} == {401}
    assert (False, 200) in results


async def test_of_concurrent_rotations_one_keeps_its_grace_period(
    client: AsyncClient, key: IssuedKey, committing_database: Database
) -> None:
    async def rotate() -> IssuedKey:
        async with committing_database.transaction() as db:
            return await ApiKeyService.rotate(db, "sample", "importer", grace=GRACE)

    results = await asyncio.gather(*(rotate() for _ in range(5)), return_exceptions=True)

    issued = [each for each in results if isinstance(each, IssuedKey)]
    refused = [each for each in results if isinstance(each, ApiKeyInRotationError)]
    assert (len(issued), len(refused)) == (1, 4)
    assert [await status(client, each.text) for each in (key, *issued)] == [200, 200]


async def test_a_rotation_does_not_undo_a_revocation(
    client: AsyncClient, key: IssuedKey, committing_database: Database
) -> None:
    async def rotate() -> IssuedKey:
        async with committing_database.transaction() as db:
            return await ApiKeyService.rotate(db, "sample", "importer")

    async with committing_database.transaction() as db:
        await ApiKeyService.revoke(db, "importer")
        rotation = asyncio.create_task(rotate())
        await until_waiting(committing_database, 1)

    with pytest.raises(ApiKeyNotFoundError):
        await rotation
    assert await status(client, key.text) == 401


class TestLastUse:
    @pytest.fixture
    async def client(
        self, committing_database: Database, settings: Settings
    ) -> AsyncGenerator[AsyncClient]:
        async with record_key_uses(committing_database) as record:
            yield client_of(committing_database, settings, record_key_use=record)

    async def test_it_is_written_at_most_once_a_minute(
        self, client: AsyncClient, key: IssuedKey, committing_database: Database
    ) -> None:
        async def used() -> datetime:
            assert await status(client, key.text) == 200
            await asyncio.sleep(0.2)
            async with committing_database.reads() as db:
                last = (await db.execute(select(ApiKey.last_used_at))).scalar_one()
            assert last
            return last

        first = await used()
        assert await used() == first
        async with committing_database.transaction() as db:
            await db.execute(text("UPDATE api_key SET last_used_at = now() - interval '61 s'"))
        assert await used() > first

    async def test_no_request_waits_for_it(
        self, client: AsyncClient, key: IssuedKey, committing_database: Database
    ) -> None:
        async with committing_database.transaction() as db:
            await db.execute(select(ApiKey).with_for_update())
            assert [await status(client, key.text) for _ in range(5)] == [200] * 5
            await asyncio.sleep(0.2)
            await until_waiting(committing_database, 0)

    async def test_a_failure_is_logged_once(
        self,
        key: IssuedKey,
        committing_database: Database,
        settings: Settings,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        async with (
            open_database(UNREACHABLE, pool_size=1) as unreachable,
            record_key_uses(unreachable) as record,
        ):
            client = client_of(committing_database, settings, record_key_use=record)
            for _ in range(3):
                assert await status(client, key.text) == 200
                await asyncio.sleep(0.2)

        assert capsys.readouterr().err.count("api_key_use_not_recorded") == 1


@pytest.mark.parametrize("changes", [{}, {"RATE_LIMIT": "100/minute"}], ids=["", "rate limit"])
async def test_without_the_database_only_keys_of_the_setting_work(
    key: IssuedKey, settings: Settings, changes: dict[str, str]
) -> None:
    async with open_database(UNREACHABLE, pool_size=1) as unreachable:
        settings = settings.model_copy(update=changes)
        client = client_of(unreachable, settings, rate_limits=bool(changes))

        assert await status(client, key.text) == 503
        assert await status(client, SETTING) == 200
