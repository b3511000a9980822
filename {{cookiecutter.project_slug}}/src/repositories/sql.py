from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Update, func, select
from sqlalchemy.ext.asyncio import AsyncSession


async def execute_rowcount(session: AsyncSession, statement: Update | Delete) -> int:
    """Execute the statement and return its row count. Objects in memory are not updated."""
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], result).rowcount


async def set_idle_in_transaction_timeout(session: AsyncSession, *, seconds: float) -> None:
    """Let the server end this transaction if the process freezes in it."""
    setting = "idle_in_transaction_session_timeout"
    await session.execute(select(func.set_config(setting, f"{seconds:.0f}s", True)))
