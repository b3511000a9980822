from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Update, func, select
from sqlalchemy.ext.asyncio import AsyncSession


async def count_of(session: AsyncSession, statement: Update | Delete) -> int:
    """Execute the statement; return how many rows it changed. Objects in memory are left as is."""
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], result).rowcount


async def limit_idleness(session: AsyncSession, *, seconds: float) -> None:
    """Let the server end this transaction if the process freezes in it."""
    setting = "idle_in_transaction_session_timeout"
    await session.execute(select(func.set_config(setting, f"{seconds:.0f}s", True)))
