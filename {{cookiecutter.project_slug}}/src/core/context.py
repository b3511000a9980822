"""The settings and the database for code outside requests, without global variables."""

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
    """Provide the context to tasks and jobs that run inside the `with` block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def set_context(context: Context) -> None:
    _current.set(context)


def current_context() -> Context:
    """Return the context. Raises LookupError outside of tasks, jobs and `use_context`."""
    return _current.get()


def current_settings() -> Settings:
    return _current.get().settings


def transaction() -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session that commits at the end of the block, and rolls back on an exception."""
    return _current.get().database.transaction()
