from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession


class Batch(Protocol):
    async def __call__(self, db: AsyncSession, /, *, limit: int) -> int:
        """Do it to `limit` rows at most; return to how many."""


async def in_batches(
    transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    batch: Batch,
    *,
    limit: int,
) -> int:
    """Call until a batch is not full, each in a transaction of its own; return the sum."""
    total = 0
    while True:
        async with transaction() as db:
            count = await batch(db, limit=limit)
        total += count
        if count < limit:
            return total
