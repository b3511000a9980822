import asyncio
from collections.abc import Awaitable, Mapping

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from src.db.session import Database, DatabaseUnavailableError

log = structlog.get_logger(__name__)

CHECK_TIMEOUT_SECONDS = 2.0


async def ping_database(database: Database) -> None:
    """Raises DatabaseUnavailableError or SQLAlchemyError."""
    async with database.probes() as session:
        await session.execute(text("SELECT 1"))


async def run_checks(
    checks: Mapping[str, Awaitable[None]], *, errors: tuple[type[Exception], ...] = ()
) -> dict[str, bool]:
    """Run the checks concurrently, for at most two seconds; return which ones passed.

    A check fails if it raises DatabaseUnavailableError, SQLAlchemyError or one of `errors`.
    """
    errors = (DatabaseUnavailableError, SQLAlchemyError, *errors)
    tasks = {
        name: asyncio.create_task(_passes(name, check, errors)) for name, check in checks.items()
    }
    try:
        await asyncio.wait(tasks.values(), timeout=CHECK_TIMEOUT_SECONDS)
        return {name: task.done() and task.result() for name, task in tasks.items()}
    finally:
        for name, task in tasks.items():
            # Not awaited: closing a connection that hangs takes more seconds.
            if task.cancel():
                log.warning("readiness_check_failed", check=name, cause="timeout")


async def _passes(name: str, check: Awaitable[None], errors: tuple[type[Exception], ...]) -> bool:
    try:
        await check
    except errors as error:
        log.warning("readiness_check_failed", check=name, cause=repr(error.__cause__ or error))
        return False
    return True
