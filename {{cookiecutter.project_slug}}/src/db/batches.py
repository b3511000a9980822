from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncSession


async def in_batches(
    transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    batch: Callable[..., Awaitable[int]],
    *,
    limit: int,
) -> int:
    """Process rows in batches, each in its own transaction; return their number.

    `batch(db, limit=limit)` returns how many rows it processed. Fewer than `limit` ends the loop.
    """
    total = 0
    while True:
        async with transaction() as db:
            count = await batch(db, limit=limit)
        total += count
        if count < limit:
            return total
