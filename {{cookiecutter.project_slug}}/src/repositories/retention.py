"""Deletes rows after a retention period.

A model names the setting that has the number of days, and the column with the start of the period:

    __retention__ = ("TASK_HISTORY_DAYS", "finished_at")
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from typing import Any, cast

from sqlalchemy import CursorResult, Select, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import Settings
from src.db.base import Base
from src.db.batches import in_batches

BATCH = 500  # rows per transaction; short transactions hold locks only briefly


async def delete_expired(
    transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    settings: Settings,
    setting: str,
) -> int:
    """Delete the expired rows of each model that names `setting`; return their number."""
    # PostgreSQL's time: with a wrong clock, this process would delete rows too early.
    before = func.now() - timedelta(days=getattr(settings, setting))
    total = 0
    for mapper in Base.registry.mappers:
        named, column = getattr(mapper.class_, "__retention__", (None, ""))
        if named == setting:
            old = select(*mapper.primary_key).where(mapper.columns[column] < before)
            batch = partial(_delete_batch, model=mapper.class_, old=old)
            total += await in_batches(transaction, batch, limit=BATCH)
    return total


async def _delete_batch(
    db: AsyncSession, /, *, model: type[Base], old: Select[Any], limit: int
) -> int:
    key = tuple_(*old.selected_columns)
    expired = delete(model).where(key.in_(old.limit(limit)))
    result = await db.execute(expired, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], result).rowcount
