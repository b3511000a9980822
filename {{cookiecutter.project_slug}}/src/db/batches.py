from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncSession


async def in_batches(
    transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    batch: Callable[..., Awaitable[int]],
    *,
    limit: int,
) -> int:
    """Call `batch(db, limit=limit)`, each in a transaction, until one is not full; return the sum."""
    total = 0
    while True:
        async with transaction() as db:
            count = await batch(db, limit=limit)
        total += count
        if count < limit:
            return total
