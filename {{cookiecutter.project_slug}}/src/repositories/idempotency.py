from datetime import timedelta
from typing import cast

from sqlalchemy import (
    JSON,
    LargeBinary,
    SmallInteger,
    Table,
    bindparam,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from src.db.models.idempotency import IdempotencyKey
from src.domain.idempotency import IdempotencyKeyInUseError

LIFETIME = timedelta(hours=24)
PRUNED_AT_ONCE = 10
LOCK_NOT_AVAILABLE = "55P03"  # SQLSTATE

# Rows rather than objects, which would cost more.
_KEY = cast(Table, IdempotencyKey.__table__)
_EXPIRED = _KEY.c.created_at < func.now() - LIFETIME

_INSERT = insert(_KEY).values(
    id=bindparam("key", type_=LargeBinary), fingerprint=bindparam("request", type_=LargeBinary)
)
_ACQUIRE = _INSERT.on_conflict_do_update(
    index_elements=[_KEY.c.id],
    set_={name: _INSERT.excluded[name] for name in ("fingerprint", "status", "created_at")},
    where=_EXPIRED,
).returning(_KEY.c.id)
_GET = select(IdempotencyKey).where(IdempotencyKey.id == bindparam("key"))

_OLD = (
    select(_KEY.c.id)
    .where(_EXPIRED)
    .order_by(_KEY.c.created_at)
    .limit(PRUNED_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_STORE_RESPONSE = (
    update(_KEY)
    .where(_KEY.c.id == bindparam("key"))
    .values(
        status=bindparam("new_status", type_=SmallInteger),
        headers=bindparam("new_headers", type_=JSON),
        body=bindparam("new_body", type_=LargeBinary),
    )
    .add_cte(delete(_KEY).where(_KEY.c.id.in_(_OLD)).cte("pruned"))
)


class IdempotencyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def acquire(self, key: bytes, fingerprint: bytes, *, lock_timeout: float) -> bool:
        """Insert the key, or renew an expired one; return False if it is taken.

        Another transaction that has just inserted it is waited for, up to `lock_timeout` seconds.
        Raises IdempotencyKeyInUseError.
        """
        await self.session.execute(text(f"SET LOCAL lock_timeout = {lock_timeout * 1000:.0f}"))
        try:
            acquired = await self.session.scalar(_ACQUIRE, {"key": key, "request": fingerprint})
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise IdempotencyKeyInUseError from error
        if acquired is not None:  # the limit is not for the work that follows
            await self.session.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
        return acquired is not None

    async def get(self, key: bytes) -> IdempotencyKey | None:
        return await self.session.scalar(_GET, {"key": key})

    async def store_response(
        self, key: bytes, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        """Store the response with its key, and delete a few expired keys."""
        response = {"new_status": status, "new_headers": headers, "new_body": body}
        await self.session.execute(_STORE_RESPONSE, {"key": key, **response})
