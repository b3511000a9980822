from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Update
from sqlalchemy.ext.asyncio import AsyncSession


async def count_of(session: AsyncSession, statement: Update | Delete) -> int:
    """Execute the statement; return how many rows it changed. Objects in memory are left as is."""
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], result).rowcount
