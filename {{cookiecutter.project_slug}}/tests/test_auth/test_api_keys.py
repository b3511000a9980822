"""API keys in the database: their format, and what the API does with them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import SecretStr
from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth import api_keys
from src.core.config import Settings
from src.db import Database
from src.db.models.api_key import ApiKey
from src.domain.api_key import ApiKeyExpiredError
from src.services import api_key
from src.services.api_key import ApiKeyService, IssuedKey
from tests.fixtures.client import connect
from tests.fixtures.notes import NOTES

PREFIX = "sample"
DEPLOYED_KEY = "8f14e45fceea167a5a36dedd4bea2543"
GRACE = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a new logger, because an earlier test may have bound that of the module."""
    monkeypatch.setattr(api_key, "log", structlog.get_logger())


@pytest.fixture
def client(app: FastAPI, database: Database, settings: Settings) -> AsyncClient:
    """A client of an application that needs credentials."""
    keys = [SecretStr(DEPLOYED_KEY)]
    return connect(app, database, settings.model_copy(update={"API_KEYS": keys}))


async def create(db: AsyncSession, name: str = "importer", *, days: int | None = None) -> IssuedKey:
    lifetime = None if days is None else timedelta(days=days)
    issued = await ApiKeyService.create(db, PREFIX, name, (), lifetime=lifetime)
    await db.commit()
    return issued


async def status(client: AsyncClient, text: str) -> int:
    return (await client.get(NOTES, headers={"X-API-Key": text})).status_code


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """Return the lines of the log with this event."""
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [line for line in lines if line["event"] == event]


class TestFormat:
    def test_a_key_is_found_by_its_prefix_and_has_256_random_bits(self) -> None:
        credential = api_keys.new_credential()

        text = api_keys.format_key("lamps", credential)

        assert api_keys.parse(text) == credential
        prefix, key_id, rest = text.split("_")
        assert (prefix, len(key_id), len(rest)) == ("lamps", 12, 49)
        assert 62 ** (len(rest) - 6) > 2**256

    def test_each_changed_character_is_noticed(self) -> None:
        text = api_keys.format_key("lamps", api_keys.new_credential())

        for position, character in enumerate(text):
            other = "a" if character != "a" else "b"
            assert api_keys.parse(text[:position] + other + text[position + 1 :]) is None

    def test_the_checksum_stays_the_same_in_all_releases(self) -> None:
        credential = api_keys.Credential("0123456789Ab", "z" * 43)

        assert api_keys.format_key("lamps", credential).endswith("z1Ad6Yc")

    @pytest.mark.parametrize("text", ["", "lamps", "__", "x" * 65536, "lamps_é_", "lamps_\0_"])
    def test_other_text_is_no_key(self, text: str) -> None:
        assert api_keys.parse(text) is None


class TestRequests:
    async def test_a_key_identifies_its_principal(
        self, client: AsyncClient, db: AsyncSession
    ) -> None:
        key = await create(db)

        assert await status(client, key.text) == 200
        assert await status(client, DEPLOYED_KEY) == 200

    async def test_rejected_keys_get_the_same_response_and_a_log_line(
        self, client: AsyncClient, db: AsyncSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        key, expired, revoked = [await create(db, name) for name in ("a", "b", "c")]
        await db.execute(
            update(ApiKey).where(ApiKey.id == expired.row.id).values(expires_at=func.now())
        )
        await ApiKeyService.revoke(db, revoked.row.id)
        await db.commit()
        wrong = api_keys.Credential(key.row.id, api_keys.new_secret())
        unknown = api_keys.new_credential()
        format_reason = ("invalid format or checksum", None)
        rejected = {
            "": format_reason,
            "x" * 65536: format_reason,
            "sch\u00f6n": format_reason,
            f"{key.text}\0": format_reason,
            key.text[:-1]: format_reason,
            f"{key.text} ": format_reason,
            f"{key.text[:-1]}{'a' if key.text[-1] != 'a' else 'b'}": format_reason,
            api_keys.format_key(PREFIX, unknown): ("unknown", unknown.id),
            api_keys.format_key(PREFIX, wrong): ("wrong secret", key.row.id),
            expired.text: ("expired", expired.row.id),
            revoked.text: ("revoked", revoked.row.id),
        }

        bodies = set()
        for text, (reason, key_id) in rejected.items():
            caplog.clear()
            response = await client.get(NOTES, headers=[(b"X-API-Key", text.encode())])
            assert response.status_code == 401, reason
            assert response.headers["www-authenticate"]
            bodies.add(response.json()["detail"])
            (line,) = logged(caplog, "credentials_rejected")
            assert (line["reason"], line["key_id"]) == (reason, key_id)
            assert text == "" or text not in caplog.text
        assert len(bodies) == 1

    async def test_two_keys_are_rejected(self, client: AsyncClient, db: AsyncSession) -> None:
        key = await create(db)

        headers = [("X-API-Key", key.text), ("X-API-Key", key.text)]

        assert (await client.get(NOTES, headers=headers)).status_code == 401

    async def test_unknown_scopes_are_ignored_with_a_log_line(
        self, client: AsyncClient, db: AsyncSession, caplog: pytest.LogCaptureFixture
    ) -> None:
        key = await create(db)
        await db.execute(update(ApiKey).values(scopes=["lamps:paint"]))
        await db.commit()

        assert [await status(client, key.text) for _ in range(2)] == [200, 200]

        (line,) = logged(caplog, "unknown_scopes_ignored")
        assert line["scopes"] == ["lamps:paint"]

    async def test_a_key_that_expires_during_its_use_is_refused(
        self, client: AsyncClient, db: AsyncSession
    ) -> None:
        key = await create(db, days=1)
        assert await status(client, key.text) == 200
        soon = func.clock_timestamp() + timedelta(seconds=0.3)
        await db.execute(update(ApiKey).values(expires_at=soon))
        await db.commit()

        await asyncio.sleep(0.4)
        assert await status(client, key.text) == 401


class TestRotation:
    async def test_the_old_secret_is_valid_for_its_grace_period(
        self, client: AsyncClient, db: AsyncSession
    ) -> None:
        old = await create(db)
        new = await ApiKeyService.rotate(db, PREFIX, old.row.name, grace=GRACE)
        await db.commit()
        assert new.row.id == old.row.id
        assert [await status(client, each.text) for each in (old, new)] == [200, 200]

        await db.execute(update(ApiKey).values(previous_expires_at=func.now()))
        await db.commit()

        assert [await status(client, each.text) for each in (old, new)] == [401, 200]

    async def test_without_a_grace_period_all_old_secrets_are_invalid(
        self, client: AsyncClient, db: AsyncSession
    ) -> None:
        keys = [await create(db)]
        for grace in (GRACE, None):
            keys.append(await ApiKeyService.rotate(db, PREFIX, "importer", grace=grace))
            await db.commit()

        assert [await status(client, each.text) for each in keys] == [401, 401, 200]

    async def test_an_expired_key_needs_a_new_expiry(
        self, client: AsyncClient, db: AsyncSession
    ) -> None:
        await create(db, days=1)
        await db.execute(update(ApiKey).values(expires_at=func.now()))
        await db.commit()

        with pytest.raises(ApiKeyExpiredError):
            await ApiKeyService.rotate(db, PREFIX, "importer")
        new = await ApiKeyService.rotate(db, PREFIX, "importer", lifetime=GRACE)
        await db.commit()

        assert await status(client, new.text) == 200

    async def test_revocation_ends_the_grace_period(
        self, client: AsyncClient, db: AsyncSession
    ) -> None:
        old = await create(db)
        new = await ApiKeyService.rotate(db, PREFIX, "importer", grace=GRACE)
        await ApiKeyService.revoke(db, "importer")
        await db.commit()

        assert [await status(client, each.text) for each in (old, new)] == [401, 401]
