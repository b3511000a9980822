from collections.abc import Sequence
from datetime import timedelta

from asyncpg import Record
from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from src.db import Database
from src.db.models.api_key import ApiKey

USE_INTERVAL = timedelta(minutes=1)  # between two updates of `last_used_at`

# Not `now()`, the start of the transaction: tests have one transaction for all requests. The
# interval is USE_INTERVAL.
_CREDENTIALS = """
SELECT id, secret_hash, previous_hash, scopes,
    revoked_at IS NOT NULL AS is_revoked,
    coalesce(expires_at <= clock_timestamp(), false) AS is_expired,
    coalesce(previous_expires_at > clock_timestamp(), false) AS is_previous_valid,
    coalesce(last_used_at < clock_timestamp() - interval '1 minute', true) AS is_use_due
FROM api_key WHERE id = ANY($1)
"""


async def find_credentials(database: Database, key_id: str) -> Record | None:
    """Return what authentication needs, as it is committed now: a revocation counts at once."""
    return await database.lookups.find(_CREDENTIALS, key_id)


class ApiKeyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def add(self, key: ApiKey) -> ApiKey:
        self.session.add(key)
        await self.session.flush()
        return key

    async def list(self) -> Sequence[ApiKey]:
        return (await self.session.scalars(select(ApiKey).order_by(ApiKey.created_at))).all()

    async def lock_active(self, name_or_id: str) -> ApiKey | None:
        """Lock a key that is not revoked until the transaction ends. A name goes before an ID."""
        found = (
            select(ApiKey)
            .where(
                or_(ApiKey.name == name_or_id, ApiKey.id == name_or_id),
                ApiKey.revoked_at.is_(None),
            )
            .order_by((ApiKey.name == name_or_id).desc())
            .limit(1)
            .with_for_update()
        )
        return await self.session.scalar(found)

    async def record_uses(self, key_ids: Sequence[str]) -> None:
        """Update `last_used_at`, unless another process did so, or a rotation has locked the row."""
        due = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - USE_INTERVAL)
        rows = (
            select(ApiKey.id)
            .where(ApiKey.id.in_(key_ids), due)
            .order_by(ApiKey.id)
            .with_for_update(skip_locked=True)
        )
        await self.session.execute(
            update(ApiKey).where(ApiKey.id.in_(rows)).values(last_used_at=func.now()),
            execution_options={"synchronize_session": False},
        )
