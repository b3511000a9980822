import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, timedelta
from functools import lru_cache
from typing import NamedTuple, NoReturn

import structlog
from asyncpg import Record
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from src.auth import api_keys
from src.db import Database
from src.db.models.api_key import ApiKey
from src.domain.api_key import (
    ApiKeyExpiredError,
    ApiKeyInRotationError,
    ApiKeyNameTakenError,
    ApiKeyNotFoundError,
)
from src.domain.errors import UnauthenticatedError
from src.domain.principal import Principal, PrincipalKind, Scope
from src.repositories.api_key import ApiKeyRepository, find_credentials

log = structlog.get_logger(__name__)


class IssuedKey(NamedTuple):
    row: ApiKey
    text: str  # the key itself, which is not stored


class Authenticated(NamedTuple):
    principal: Principal
    is_use_due: bool  # `last_used_at` is old


class ApiKeyService:
    @staticmethod
    async def authenticate(database: Database, text: str) -> Authenticated:
        """Raises UnauthenticatedError, and logs the reason."""
        credential = api_keys.parse(text)
        if credential is None:
            reject_key("invalid format or checksum")
        row = await find_credentials(database, credential.id)
        if row is None:
            reject_key("unknown", credential.id)
        if not _matches(row, api_keys.hash_of(credential.secret)):
            reject_key("wrong secret", credential.id)
        if row["is_revoked"] or row["is_expired"]:
            reject_key("revoked" if row["is_revoked"] else "expired", credential.id)
        scopes = _known_scopes(credential.id, tuple(row["scopes"]))
        principal = Principal(PrincipalKind.API_KEY, credential.id, scopes)
        return Authenticated(principal, row["is_use_due"])

    @staticmethod
    async def create(
        db: AsyncSession,
        prefix: str,
        name: str,
        scopes: Collection[Scope],
        *,
        lifetime: timedelta | None = None,
    ) -> IssuedKey:
        """Raises ApiKeyNameTakenError."""
        credential = api_keys.new_credential()
        row = ApiKey(
            id=credential.id,
            name=name,
            secret_hash=api_keys.hash_of(credential.secret),
            scopes=sorted(scopes),
            expires_at=None if lifetime is None else func.now() + lifetime,
        )
        try:
            async with db.begin_nested():
                await ApiKeyRepository(db).add(row)
        except IntegrityError as error:
            raise ApiKeyNameTakenError(name=name) from error
        return IssuedKey(row, api_keys.format_key(prefix, credential))

    @staticmethod
    async def list(db: AsyncSession) -> Sequence[ApiKey]:
        return await ApiKeyRepository(db).list()

    @staticmethod
    async def revoke(db: AsyncSession, name_or_id: str) -> ApiKey:
        """Raises ApiKeyNotFoundError."""
        row = await _lock(db, name_or_id)
        row.revoked_at = func.now()
        await db.flush()
        return row

    @staticmethod
    async def rotate(
        db: AsyncSession,
        prefix: str,
        name_or_id: str,
        *,
        grace: timedelta | None = None,
        lifetime: timedelta | None = None,
    ) -> IssuedKey:
        """Replace the secret. The old one remains valid for the grace period.

        Raises ApiKeyNotFoundError, ApiKeyExpiredError or ApiKeyInRotationError.
        """
        row = await _lock(db, name_or_id)
        now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
        if lifetime is not None:
            row.expires_at = now + lifetime
        elif row.expires_at and row.expires_at <= now:
            raise ApiKeyExpiredError(name=row.name)
        if grace and row.previous_expires_at and row.previous_expires_at > now:
            until = row.previous_expires_at.astimezone(UTC).isoformat(timespec="seconds")
            raise ApiKeyInRotationError(name=row.name, time=until)
        credential = api_keys.Credential(row.id, api_keys.new_secret())
        row.previous_hash = row.secret_hash if grace else None
        row.previous_expires_at = now + grace if grace else None
        row.secret_hash = api_keys.hash_of(credential.secret)
        await db.flush()
        return IssuedKey(row, api_keys.format_key(prefix, credential))


def reject_key(reason: str, key_id: str | None = None) -> NoReturn:
    """Raises UnauthenticatedError. The response does not say why: the log does."""
    log.warning("credentials_rejected", kind="API key", reason=reason, key_id=key_id)
    raise UnauthenticatedError


def _matches(row: Record, given: bytes) -> bool:
    is_current = secrets.compare_digest(row["secret_hash"], given)
    is_previous = secrets.compare_digest(row["previous_hash"] or b"", given)
    return is_current or (is_previous and row["is_previous_valid"])


@lru_cache(maxsize=1000)  # so that it logs only once
def _known_scopes(key_id: str, names: tuple[str, ...]) -> frozenset[Scope]:
    known = [name for name in names if name in set(Scope)]
    if unknown := sorted({*names} - {*known}):
        log.warning("unknown_scopes_ignored", key_id=key_id, scopes=unknown)
    return frozenset(map(Scope, known))


async def _lock(db: AsyncSession, name_or_id: str) -> ApiKey:
    row = await ApiKeyRepository(db).lock_active(name_or_id)
    if row is None:
        raise ApiKeyNotFoundError(id=name_or_id)
    return row
