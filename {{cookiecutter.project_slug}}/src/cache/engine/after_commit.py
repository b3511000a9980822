"""What becomes of open transactions: act once they are committed, know whether they have written."""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.util import await_only

from src.db.session import ReadOnlySession

log = structlog.get_logger(__name__)

Callback = Callable[[], Awaitable[None]]


@dataclass
class _State:
    """What a session's transaction has come to, from its beginning to its end."""

    has_written: bool = False
    is_lost: bool = False  # with its connection, as it was committed: who knows whether it was
    callbacks: list[Callback] = field(default_factory=list)
    # How many callbacks there were when each savepoint began.
    savepoints: dict[SessionTransaction, int] = field(default_factory=dict)


@dataclass
class Watch:
    """Whether anything was committed in a block, or in the tasks that it started."""

    outer: "Watch | None"
    has_seen_commit: bool = False


_STATE = "transaction_state"
_open: ContextVar[tuple[Session, ...]] = ContextVar("open_sessions", default=())
_committing: ContextVar[Session | None] = ContextVar("committing_session", default=None)
_watch: ContextVar[Watch | None] = ContextVar("commit_watch", default=None)
_unfinished: set[asyncio.Task[None]] = set()


@contextmanager
def watch_commits() -> Generator[Watch]:
    """Watch the block for `after_commit`."""
    watch = Watch(outer=_watch.get())
    _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.set(watch.outer)


async def after_commit(
    callback: Callback, sessions: Sequence[Session] = (), watch: Watch | None = None
) -> None:
    """Await `callback` right after the commit, before whoever commits goes on.

    The transaction is that of the `sessions`, or else any that this task has open, whoever opened
    it. If it is rolled back, nothing happens. Where none is open there is nothing to wait for; nor
    is there if `watch` has seen a commit: what is open now may have begun after it.
    """
    writing = [session for session in sessions if not isinstance(session, ReadOnlySession)]
    waiting = [session for session in writing or _open.get() if session.in_transaction()]
    for session in waiting:
        call_after_commit(session, callback)
    if not waiting or (watch is not None and watch.has_seen_commit):
        await callback()


def call_after_commit(session: Session, callback: Callback) -> None:
    """As `after_commit`, from SQLAlchemy's own events, which cannot wait."""
    _state_of(session).callbacks.append(callback)


def has_uncommitted_changes() -> bool:
    """Whether this task has a transaction open that has written, so that it alone sees the change."""
    sessions = _open.get()
    if not sessions:  # every hit asks
        return False
    return any(_STATE in each.info and each.info[_STATE].has_written for each in sessions)


def _state_of(session: Session) -> _State:
    state: _State = session.info.setdefault(_STATE, _State())
    return state


def _note(session: Session) -> None:
    """Let this task know of the session, which another one may have begun: a fixture, say."""
    known = _open.get()
    if session not in known and not isinstance(session, ReadOnlySession):
        # Those that another task has ended are still here.
        _open.set((*(each for each in known if each.in_transaction()), session))


@event.listens_for(Session, "after_transaction_create")
def _begun(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        state = _state_of(session)
        state.savepoints[transaction] = len(state.callbacks)
    elif transaction.parent is None:
        _note(session)


@event.listens_for(Session, "after_flush")
def _flushed(session: Session, _context: object) -> None:
    _note(session)
    _state_of(session).has_written = True


@event.listens_for(Session, "do_orm_execute")
def _executed(execution: ORMExecuteState) -> None:
    if not execution.is_select:
        _note(execution.session)
        _state_of(execution.session).has_written = True


@event.listens_for(Session, "after_soft_rollback")
def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    state: _State | None = session.info.get(_STATE)
    if state is not None and transaction in state.savepoints:
        del state.callbacks[state.savepoints[transaction] :]


@event.listens_for(Session, "before_commit")
def _begins_to_commit(session: Session) -> None:
    _committing.set(session)


@event.listens_for(Engine, "handle_error")
def _failed(context: ExceptionContext) -> None:
    """Take note of a COMMIT that was cancelled, or lost its connection: it may have succeeded."""
    session = _committing.get()
    if session is not None and context.is_disconnect and context.statement is None:
        _state_of(session).is_lost = True


@event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    if session.in_nested_transaction():
        return  # only a savepoint is released; the transaction may still be rolled back
    watch = _watch.get()
    while watch is not None:
        watch.has_seen_commit = True
        watch = watch.outer
    state: _State | None = session.info.pop(_STATE, None)
    if state is not None and state.callbacks:
        # Shielded: who is cancelled now has committed all the same.
        await_only(asyncio.shield(_call(state.callbacks)))


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    state: _State | None = session.info.pop(_STATE, None)
    _open.set(tuple(each for each in _open.get() if each is not session))
    if _committing.get() is session:
        _committing.set(None)
    if state is not None and state.is_lost and state.callbacks:
        _call(state.callbacks)


async def finish_callbacks() -> None:
    """Wait for what callers that were cancelled have left to do."""
    await asyncio.gather(*_unfinished)


def _call(callbacks: Sequence[Callback]) -> asyncio.Task[None]:
    """Call one after the other, in a task of their own that does not end with its maker."""

    async def call_all() -> None:
        for callback in callbacks:
            try:
                await callback()
            except Exception:
                # To raise would say that nothing was committed.
                log.exception("after_commit_failed")

    task = asyncio.create_task(call_all())
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    return task
