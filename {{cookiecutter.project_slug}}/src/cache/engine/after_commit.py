"""Invalidation that waits for the commit, in every session that writes.

Over-invalidation is safe. So a savepoint that is rolled back takes nothing back, and a commit that
fails counts as one, for it may have succeeded before its connection was lost.
"""

from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog
from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.util import await_only

from src.db.session import ReadOnlySession

log = structlog.get_logger(__name__)


Invalidate = Callable[..., Awaitable[None]]  # Cache.invalidate


@dataclass
class _Transaction:
    """What a session's transaction has done so far, and what its commit invalidates."""

    has_written: bool = False
    is_committing: bool = False
    invalidate: Invalidate | None = None
    key_patterns: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)

    async def run(self) -> None:
        try:
            if self.invalidate is not None:
                await self.invalidate(*sorted(self.key_patterns), tags=sorted(self.tags))
        except Exception:
            log.exception("cache_invalidation_failed")  # to raise would say that nothing was committed


_TRANSACTION = "cache_transaction"
# The sessions that this task has used to write; most of their transactions have ended.
_sessions: ContextVar[tuple[Session, ...]] = ContextVar("writing_sessions", default=())
_commits: ContextVar[list[Session] | None] = ContextVar("commits", default=None)


@contextmanager
def watch_commits() -> Generator[list[Session]]:
    """Yield a list of the sessions that have committed in the block, or in tasks that it started."""
    outer = _commits.get()
    commits: list[Session] = []
    _commits.set(commits)
    try:
        yield commits
    finally:
        _commits.set(outer)
        if outer is not None:
            outer += commits


def has_uncommitted_changes() -> bool:
    """Whether this task has a transaction open that has written, so that it alone sees the change."""
    sessions = _sessions.get()
    if not sessions:  # every hit asks
        return False
    return any(_TRANSACTION in each.info and _transaction(each).has_written for each in sessions)


def open_transactions(sessions: Iterable[Session]) -> list[Session]:
    """Return those of the sessions, or else of this task, that may still commit something."""
    writing = [each for each in sessions if not isinstance(each, ReadOnlySession)]
    return [each for each in writing or _sessions.get() if each.in_transaction()]


def invalidate_after_commit(
    session: Session, invalidate: Invalidate, key_patterns: Iterable[str], tags: Iterable[str]
) -> None:
    """Invalidate right after the commit, before the caller of `commit` continues."""
    transaction = _transaction(session)
    transaction.invalidate = invalidate
    transaction.key_patterns.update(key_patterns)
    transaction.tags.update(tags)


def _transaction(session: Session) -> _Transaction:
    transaction: _Transaction = session.info.setdefault(_TRANSACTION, _Transaction())
    return transaction


def _remember(session: Session) -> None:
    known = _sessions.get()
    if session not in known and not isinstance(session, ReadOnlySession):
        _sessions.set((*(each for each in known if each.in_transaction()), session))


@event.listens_for(Session, "after_transaction_create")
def _on_begin(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        _remember(session)


@event.listens_for(Session, "after_flush")
def _on_flush(session: Session, _context: object) -> None:
    _remember(session)  # another task may have begun the transaction
    _transaction(session).has_written = True


@event.listens_for(Session, "do_orm_execute")
def _on_execute(execution: ORMExecuteState) -> None:
    if not execution.is_select:
        _on_flush(execution.session, None)


@event.listens_for(Session, "before_commit")
@event.listens_for(Session, "after_commit")
def _on_commit(session: Session) -> None:
    if not session.in_nested_transaction():
        _transaction(session).is_committing = True


@event.listens_for(Session, "after_transaction_end")
def _on_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    ended: _Transaction | None = session.info.pop(_TRANSACTION, None)
    if ended is not None and ended.is_committing:
        commits = _commits.get()
        if commits is not None:
            commits.append(session)
        if ended.invalidate is not None:
            await_only(ended.run())
