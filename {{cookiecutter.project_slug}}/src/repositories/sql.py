from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession


async def set_idle_in_transaction_timeout(session: AsyncSession, *, seconds: float) -> None:
    """Let PostgreSQL abort this transaction if it is idle for longer, as in a frozen process."""
    setting = "idle_in_transaction_session_timeout"
    await session.execute(select(func.set_config(setting, f"{seconds:.0f}s", True)))
