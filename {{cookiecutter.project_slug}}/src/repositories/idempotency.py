from datetime import timedelta
from typing import cast

from sqlalchemy import Table, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.idempotency import IdempotencyKey
from src.domain.errors import IdempotencyKeyInUseError, IdempotencyKeyReusedError

LIFETIME = timedelta(hours=24)
PRUNE_LIMIT = 10

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
        found = select(IdempotencyKey).where(_TABLE.c.id == key, ~_EXPIRED)
        stored = await self.session.scalar(found)
        if stored is None or stored.status is None:  # not committed yet, or just expired
            raise IdempotencyKeyInUseError
        if stored.fingerprint != fingerprint:
            raise IdempotencyKeyReusedError
        return stored

    async def _insert(self, key: bytes, fingerprint: bytes) -> bool:
        """Insert the key or replace an expired one, unless another transaction does so.

        The INSERT alone would wait for that transaction, and occupy a connection.
        """
        lock = func.pg_try_advisory_xact_lock(int.from_bytes(key[:8], signed=True))
        values = select(literal(key), literal(fingerprint)).where(lock)
        new = insert(_TABLE).from_select(["id", "fingerprint"], values)
        renewed = {name: new.excluded[name] for name in ("fingerprint", "status", "created_at")}
        statement = new.on_conflict_do_update(
            index_elements=[_TABLE.c.id], set_=renewed, where=_EXPIRED
        ).returning(_TABLE.c.id)
        return await self.session.scalar(statement) is not None

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
