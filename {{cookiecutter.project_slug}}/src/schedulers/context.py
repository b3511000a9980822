"""What a job finds: it takes no arguments, and there are no globals."""

from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import Settings
from src.db import Database


@dataclass(frozen=True)
class JobContext:
    settings: Settings
    database: Database
    tick: datetime | None = None


_current: ContextVar[JobContext] = ContextVar("job_context")


@contextmanager
def use_context(context: JobContext) -> Generator[JobContext]:
    """Let the jobs that the block calls find this context."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def job_settings() -> Settings:
    return _current.get().settings


def job_tick() -> datetime | None:
    """Return when this run was due, which may be a while ago; none outside the scheduler."""
    return _current.get().tick


def transaction() -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session for the job; it commits when the block ends, and rolls back when it raises."""
    return _current.get().database.transaction()
