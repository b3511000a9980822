"""What tasks and jobs find besides their arguments: there are no globals."""

from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from src.core.config import Settings
from src.db import Database


@dataclass(frozen=True)
class Context:
    settings: Settings
    database: Database


_current: ContextVar[Context] = ContextVar("context")


@contextmanager
def use_context(context: Context) -> Generator[None]:
    """Let the tasks and jobs that the block calls find this context."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def set_context(context: Context) -> None:
    _current.set(context)


def current_context() -> Context:
    """Return the context. Raises LookupError outside tasks, jobs and `use_context`."""
    return _current.get()


def current_settings() -> Settings:
    return _current.get().settings


def transaction() -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session that commits when the block ends, and rolls back when it raises."""
    return _current.get().database.transaction()
