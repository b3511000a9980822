from datetime import timedelta
from typing import cast

from sqlalchemy import (
    JSON,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    bindparam,
    delete,
    func,
    select,
    true,
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

# As objects they would cost more, and nobody changes one.
_KEY = cast(Table, IdempotencyKey.__table__)
_EXPIRED = _KEY.c.created_at < func.now() - LIFETIME

# What waits for the first of two is the INSERT. It is to give up soon, and the work that follows is
# not: the server puts its own limit back as it returns the row. That saves two round trips.
_LIMIT = select(
    func.current_setting("lock_timeout").label("usual"),
    func.set_config("lock_timeout", bindparam("patience", type_=Text), true()),
).cte("patience")
_ROW = select(
    bindparam("key", type_=LargeBinary), bindparam("request", type_=LargeBinary)
).select_from(_LIMIT)
_INSERT = insert(_KEY).from_select(["id", "fingerprint"], _ROW)
_TAKE = _INSERT.on_conflict_do_update(
    index_elements=[_KEY.c.id],
    set_={name: _INSERT.excluded[name] for name in ("fingerprint", "status", "created_at")},
    where=_EXPIRED,
).returning(select(func.set_config("lock_timeout", _LIMIT.c.usual, true())).scalar_subquery())

_GET = select(IdempotencyKey).where(IdempotencyKey.id == bindparam("key"))

_OLD = (
    select(_KEY.c.id)
    .where(_EXPIRED)
    .order_by(_KEY.c.created_at)
    .limit(PRUNED_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_KEEP = (
    update(_KEY)
    .where(_KEY.c.id == bindparam("key"))
    .values(
        status=bindparam("answer_status", type_=SmallInteger),
        headers=bindparam("answer_headers", type_=JSON),
        body=bindparam("answer_body", type_=LargeBinary),
    )
    .add_cte(delete(_KEY).where(_KEY.c.id.in_(_OLD)).cte("pruned"))
)


class IdempotencyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def take(self, key: bytes, fingerprint: bytes, *, patience: float) -> bool:
        """Insert the key, or renew one that has expired; return False if there is one.

        If another transaction has just inserted it, wait for its end, `patience` seconds at most.
        Raises IdempotencyKeyInUseError.
        """
        given = {"key": key, "request": fingerprint, "patience": f"{patience * 1000:.0f}ms"}
        try:
            return await self.session.scalar(_TAKE, given) is not None
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise IdempotencyKeyInUseError from error

    async def get(self, key: bytes) -> IdempotencyKey | None:
        return await self.session.scalar(_GET, {"key": key})

    async def keep(
        self, key: bytes, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        """Write the response down, and delete some keys that have expired."""
        given = {"answer_status": status, "answer_headers": headers, "answer_body": body}
        await self.session.execute(_KEEP, {"key": key, **given})
