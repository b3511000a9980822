from datetime import timedelta
from typing import cast

from sqlalchemy import Table, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.idempotency import IdempotencyKey
from src.domain.errors import IdempotencyKeyInUseError, IdempotencyKeyReusedError

LIFETIME = timedelta(hours=24)
# How long a second request waits for the first. It occupies a connection while it waits.
LOCK_TIMEOUT_SECONDS = 5.0
PRUNE_LIMIT = 10
LOCK_NOT_AVAILABLE = "55P03"  # SQLSTATE

_TABLE = cast(Table, IdempotencyKey.__table__)
_EXPIRED = _TABLE.c.created_at < func.now() - LIFETIME


class IdempotencyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def acquire(self, key: bytes, fingerprint: bytes) -> IdempotencyKey | None:
        """Acquire the key in this transaction, or return the response that is stored for it.

        Raises IdempotencyKeyInUseError or IdempotencyKeyReusedError.
        """
        if await self._insert(key, fingerprint):
            return None
        stored = await self.session.get(IdempotencyKey, key)
        if stored is None or stored.status is None:  # just expired, or has no response
            raise IdempotencyKeyInUseError
        if stored.fingerprint != fingerprint:
            raise IdempotencyKeyReusedError
        return stored

    async def _insert(self, key: bytes, fingerprint: bytes) -> bool:
        """Insert the key or replace an expired one. Waits for another transaction that inserts it."""
        new = insert(_TABLE).values(id=key, fingerprint=fingerprint)
        renewed = {name: new.excluded[name] for name in ("fingerprint", "status", "created_at")}
        statement = new.on_conflict_do_update(
            index_elements=[_TABLE.c.id], set_=renewed, where=_EXPIRED
        ).returning(_TABLE.c.id)
        milliseconds = f"{LOCK_TIMEOUT_SECONDS * 1000:.0f}"
        await self.session.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
        try:
            inserted = await self.session.scalar(statement)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise IdempotencyKeyInUseError from error
        if inserted is not None:  # the endpoint needs no timeout for locks
            await self.session.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
        return inserted is not None

    async def release(self, key: bytes) -> None:
        await self.session.execute(delete(_TABLE).where(_TABLE.c.id == key))

    async def store_response(
        self, key: bytes, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        """Store the response, and delete a few expired keys."""
        expired = (
            select(_TABLE.c.id)
            .where(_EXPIRED)
            .order_by(_TABLE.c.created_at)
            .limit(PRUNE_LIMIT)
            .with_for_update(skip_locked=True)
        )
        await self.session.execute(
            update(_TABLE)
            .where(_TABLE.c.id == key)
            .values(status=status, headers=headers, body=body)
            .add_cte(delete(_TABLE).where(_TABLE.c.id.in_(expired)).cte("pruned"))
        )
