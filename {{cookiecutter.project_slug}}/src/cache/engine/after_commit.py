"""After-commit callbacks: a transaction invalidates cached values once it has committed.

Invalidating too much is always safe. Rolling back to a savepoint therefore cancels no invalidation.
A commit that fails still invalidates, because it may have succeeded before the connection was lost.
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

Invalidate = Callable[..., Awaitable[None]]  # `Cache.invalidate`


@dataclass
class _Transaction:
    """The state of a session's transaction, and what to invalidate after its commit."""

    has_written: bool = False
    is_committing: bool = False
    invalidate: Invalidate | None = None
    key_patterns: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)


_TRANSACTION = "cache_transaction"
# Sessions that this asyncio task has used to write. Their transactions may have ended.
_sessions: ContextVar[tuple[Session, ...]] = ContextVar("writing_sessions", default=())
_commits: ContextVar[list[Session] | None] = ContextVar("commits", default=None)


@contextmanager
def watch_commits() -> Generator[list[Session]]:
    """Yield a live list of the sessions that commit in the block and in asyncio tasks it starts."""
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
    """Return whether this asyncio task has written in a transaction that is still open."""
    sessions = _sessions.get()
    if not sessions:  # fast path: every cache hit calls this
        return False
    return any(
        _TRANSACTION in session.info and _transaction(session).has_written for session in sessions
    )


def open_transactions(sessions: Iterable[Session]) -> list[Session]:
    """Return the given sessions that are in a transaction and can write.

    If no given session can write, use the sessions of this asyncio task.
    """
    writing = [session for session in sessions if not isinstance(session, ReadOnlySession)]
    return [session for session in writing or _sessions.get() if session.in_transaction()]


def invalidate_after_commit(
    session: Session, invalidate: Invalidate, key_patterns: Iterable[str], tags: Iterable[str]
) -> None:
    """Invalidate right after the commit, before `commit()` returns to its caller."""
    transaction = _transaction(session)
    transaction.invalidate = invalidate
    transaction.key_patterns.update(key_patterns)
    transaction.tags.update(tags)


def _transaction(session: Session) -> _Transaction:
    transaction: _Transaction = session.info.setdefault(_TRANSACTION, _Transaction())
    return transaction


def _track(session: Session) -> None:
    tracked = _sessions.get()
    if session not in tracked and not isinstance(session, ReadOnlySession):
        still_open = (other for other in tracked if other.in_transaction())
        _sessions.set((*still_open, session))


@event.listens_for(Session, "after_transaction_create")
def _on_begin(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        _track(session)


@event.listens_for(Session, "after_flush")
def _on_flush(session: Session, _context: object) -> None:
    _track(session)  # another asyncio task may have started the transaction
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
    if ended is None:
        return
    if ended.is_committing and (commits := _commits.get()) is not None:
        commits.append(session)
    # A read-only session is in AUTOCOMMIT mode: a statement that writes needs no commit.
    has_committed = ended.is_committing or isinstance(session, ReadOnlySession)
    if has_committed and ended.invalidate is not None:
        try:
            await_only(ended.invalidate(*sorted(ended.key_patterns), tags=sorted(ended.tags)))
        except Exception:
            # Do not raise: the caller would think that the commit had failed.
            log.exception("cache_invalidation_failed")
