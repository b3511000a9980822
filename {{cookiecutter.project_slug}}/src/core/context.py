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


def optional_context() -> Context | None:
    return _current.get(None)


def current_context() -> Context:
    """Return the context. Raises RuntimeError outside of tasks, jobs and `use_context`."""
    context = optional_context()
    if context is None:
        raise RuntimeError(
            "Only tasks and jobs have this context: use `DbSession` or `AppSettings` in an endpoint,"
            " and `use_context()` elsewhere, for example in a test."
        )
    return context


def current_settings() -> Settings:
    return current_context().settings


def transaction() -> AbstractAsyncContextManager[AsyncSession]:
    """Open a session that commits at the end of the block, and rolls back on an exception."""
    return current_context().database.transaction()
