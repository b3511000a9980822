from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession


class Batch(Protocol):
    async def __call__(self, db: AsyncSession, /, *, limit: int) -> int:
        """Process up to `limit` rows; return how many."""


async def in_batches(
    transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    batch: Batch,
    *,
    limit: int,
) -> int:
    """Run batches, each in its own transaction, until one is not full; return the sum."""
    total = 0
    while True:
        async with transaction() as db:
            count = await batch(db, limit=limit)
        total += count
        if count < limit:
            return total
