"""The file behind FileBackend: what is done in its thread, synchronously."""

import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from src.cache.backends.base import CacheError, CacheUnavailableError, Value
from src.cache.engine.glob import compile_pattern

FILE_NAME = "cache.sqlite3"
LOCK_NAME = "cache.lock"

_LOCK_TIMEOUT_SECONDS = 2.0
_SCANNED_AT_ONCE = 1000
_EVICTED_AT_ONCE = 16
_WRITTEN_BETWEEN_CHECKS = 256 * 2**10
_ROW_OVERHEAD_BYTES = 100
_LARGEST_ROW_BYTES = 500 * 2**20  # below SQLite's own limit of 10**9
_ATTEMPTS = 10  # others may be replacing the file at the same time

_FIRST_SURROGATE, _LAST_SURROGATE = 0xD800, 0xDFFF

_APPLICATION_ID = 0x43616368  # "Cach"
_SCHEMA_VERSION = 1
# Entries are replaced, never updated, so that the order of the row ids is that of the writes.
_SCHEMA = f"""
    CREATE TABLE entries (key TEXT UNIQUE NOT NULL, value NOT NULL, expires REAL NOT NULL);
    CREATE INDEX entries_by_end ON entries (expires) WHERE expires < 9e999;
    CREATE TABLE leases (key TEXT PRIMARY KEY, token TEXT NOT NULL, expires REAL NOT NULL)
        WITHOUT ROWID;
    CREATE INDEX leases_by_end ON leases (expires);
    PRAGMA application_id = {_APPLICATION_ID};
    PRAGMA user_version = {_SCHEMA_VERSION};
"""

# WAL: readers and the one writer do not wait for each other. OFF: nothing waits for the disk, which
# doubles the speed of writes. A process that dies harms nothing; a power failure may damage the
# file or bring back values of just before it, and a cache has to live with either.
_PRAGMAS = (
    "auto_vacuum = INCREMENTAL",  # before WAL, which makes it too late
    "journal_mode = WAL",
    "synchronous = OFF",
    f"journal_size_limit = {4 * 2**20}",
    "cell_size_check = ON",  # to notice damage
)
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DENIED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}

Outcome = tuple[Any, Exception | None]

log = structlog.get_logger(__name__)


class Store:
    """One database file and this process's connection to it; for use by one thread.

    The clock is the wall's, for processes share the file.

    A damaged file is replaced by a new one. The other processes still hold the old one then, and
    so does this one if somebody deletes it; both find out because the path no longer leads to the
    file that they opened, and what they did on that file is done again on the new one.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._max_bytes = max_bytes
        self._check_after = min(max_bytes // 64, _WRITTEN_BETWEEN_CHECKS)
        self._unchecked = self._check_after  # written since the size was looked at
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._damaged: tuple[int, int] | None = None

    def transact(self, operations: Sequence[Callable[[], Any]], begin: str) -> list[Outcome]:
        """Do all in one transaction, if `begin` says how; if it fails, raise CacheError."""
        for _ in range(_ATTEMPTS):
            try:
                outcomes = self._attempt(operations, begin)
            except sqlite3.Error as error:
                self._recover_from(error)
            except OSError as error:
                self.close()
                raise CacheUnavailableError(
                    f"The cache's folder {self._folder} cannot be used: {error.strerror}."
                ) from error
            else:
                if self._identity == _identity(self._path):
                    return outcomes
                self._reopen("deleted or replaced")
        raise CacheUnavailableError("The cache's file is damaged again and again.")

    def close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def get(self, key: str) -> Value | None:
        found = self._execute(
            "SELECT value FROM entries WHERE key = ? AND expires > ?", key, time.time()
        ).fetchone()
        return found[0] if found else None

    def get_many(self, keys: Iterable[str]) -> list[Value | None]:
        return [self.get(key) for key in keys]

    def set(self, key: str, value: Value, expires: float) -> None:
        size = _size(key) + _size(value)
        if size > min(self._max_bytes, _LARGEST_ROW_BYTES):
            self._execute("DELETE FROM entries WHERE key = ?", key)
            return
        self._execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", key, value, expires)
        self._unchecked += size + _ROW_OVERHEAD_BYTES
        if self._unchecked > self._check_after:
            self._unchecked = 0
            self._make_room()

    def add(self, key: str, value: Value, expires: float) -> bool:
        if self.get(key) is not None:
            return False
        self.set(key, value, expires)
        return True

    def delete(self, keys: Iterable[str]) -> int:
        return sum(self._delete("key = ?", key) for key in keys)

    def delete_matching(self, pattern: str) -> int:
        prefix = _literal_prefix(pattern)
        return self._delete(
            "key >= ? AND key < ? AND matches(?, key)", prefix, _end_of(prefix), pattern
        )

    def scan(self, pattern: str, start: str) -> tuple[list[str], str | None]:
        """Return some of the keys that match, and where to go on."""
        prefix = _literal_prefix(pattern)
        rows = self._execute(
            "SELECT key FROM entries WHERE key >= ? AND key < ? AND expires > ?"
            " ORDER BY key LIMIT ?",
            *(max(start, prefix), _end_of(prefix), time.time(), _SCANNED_AT_ONCE),
        ).fetchall()
        matches = compile_pattern(pattern).fullmatch
        after = rows[-1][0] + "\0" if len(rows) == _SCANNED_AT_ONCE else None
        return [key for (key,) in rows if matches(key)], after

    def flush(self) -> None:
        self._execute("DELETE FROM entries")
        self._execute("DELETE FROM leases")
        self._give_back(self._pragma("freelist_count"))

    def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        now = time.time()
        self._execute("DELETE FROM leases WHERE expires <= ?", now)
        taken = self._execute(
            "INSERT OR IGNORE INTO leases VALUES (?, ?, ?)", key, token, now + seconds
        )
        return taken.rowcount == 1

    def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        now = time.time()
        renewed = self._execute(
            "UPDATE leases SET expires = ? WHERE key = ? AND token = ? AND expires > ?",
            *(now + seconds, key, token, now),
        )
        return renewed.rowcount == 1

    def set_if_leased(self, key: str, token: str, value: Value, expires: float) -> bool:
        _size(value)  # raises while the lease is still there
        if not self.release_lease(key, token):
            return False
        self.set(key, value, expires)
        return True

    def release_lease(self, key: str, token: str) -> bool:
        """Return whether the lease was held until now."""
        released = self._execute(
            "DELETE FROM leases WHERE key = ? AND token = ? RETURNING expires > ?",
            *(key, token, time.time()),
        ).fetchall()
        return released == [(True,)]

    def info(self) -> dict[str, Any]:
        (entries,) = self._execute(
            "SELECT count(*) FROM entries WHERE expires > ?", time.time()
        ).fetchone()
        return {"entries": entries, "bytes": self._bytes_used(), "max_bytes": self._max_bytes}

    def _execute(self, statement: str, *parameters: str | bytes | float) -> sqlite3.Cursor:
        connection = self._connection or self._open()
        return connection.execute(statement, parameters)

    def _delete(self, condition: str, *parameters: str | bytes) -> int:
        """Delete entries and leases; return how many of the entries had not expired."""
        self._execute(f"DELETE FROM leases WHERE {condition}", *parameters)  # noqa: S608
        deleted = self._execute(
            f"DELETE FROM entries WHERE {condition} RETURNING expires > ?",  # noqa: S608
            *(*parameters, time.time()),
        )
        return sum(live for (live,) in deleted)

    def _make_room(self) -> None:
        while self._bytes_used() > self._max_bytes:
            expired = self._evict("WHERE expires <= ? ORDER BY expires", time.time())
            if not expired and not self._evict("ORDER BY rowid"):
                break
        self._give_back(self._pragma("page_count") - self._max_bytes // self._pragma("page_size"))

    def _give_back(self, pages: int) -> None:
        # One by one: Python 3.11 takes but the first step of such a statement, which is one page.
        for _ in range(pages):
            self._execute("PRAGMA incremental_vacuum(1)").fetchall()

    def _evict(self, which: str, *parameters: float) -> int:
        chosen = f"SELECT rowid FROM entries {which} LIMIT {_EVICTED_AT_ONCE}"  # noqa: S608
        return self._execute(
            f"DELETE FROM entries WHERE rowid IN ({chosen})",  # noqa: S608
            *parameters,
        ).rowcount

    def _bytes_used(self) -> int:
        """Return how much of the file is in use; what is free in it is used again."""
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        (value,) = self._execute(f"PRAGMA {name}").fetchone()
        return int(value)

    def _attempt(self, operations: Sequence[Callable[[], Any]], begin: str) -> list[Outcome]:
        connection = self._connection or self._open()
        if begin:
            connection.execute(begin)
        outcomes = [_outcome_of(operation) for operation in operations]
        if begin:
            connection.execute("COMMIT")
        return outcomes

    def _open(self) -> sqlite3.Connection:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            self._delete_remains()
            _create(self._path)
            self._identity = _identity(self._path)
            connection = _connect(self._path)
            try:
                _prepare(connection)
            except sqlite3.Error:
                connection.close()
                raise
        self._connection = connection
        return connection

    def _delete_remains(self) -> None:
        """Delete a damaged file, unless another process was faster and this is a new one.

        SQLite's logs go with it, also with one that somebody deleted: another file must not use
        what those who still hold the old one have mapped into memory.
        """
        if _identity(self._path) in {None, self._damaged}:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._damaged = None

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Let one process at a time make or delete the files.

        The lock is SQLite's own, which works on every system, on a file that nothing is written to.
        """
        path = self._folder / LOCK_NAME
        _create(path)
        with closing(_connect(path)) as lock:
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                if _code(error) not in _BUSY:
                    path.unlink(missing_ok=True)
                raise
            yield

    def _recover_from(self, error: sqlite3.Error) -> None:
        """Return if another attempt may succeed, else raise CacheError."""
        code = _code(error)
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.rollback()
        if code in _BUSY:
            raise CacheUnavailableError(
                f"The cache's file was locked for over {_LOCK_TIMEOUT_SECONDS:g} s."
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise CacheError("The disk that the cache's file is on is full.") from error
        if isinstance(error, sqlite3.ProgrammingError):
            raise error
        if self._identity != _identity(self._path):
            self._reopen("deleted or replaced")
        elif code in _DENIED:
            self.close()
            raise CacheUnavailableError(
                f"The file {self._path} cannot be used: {error}."
            ) from error
        else:
            self._damaged = self._identity
            self._reopen(str(error))

    def _reopen(self, cause: str) -> None:
        log.warning("cache_file_lost", cause=cause)
        self.close()


def _literal_prefix(pattern: str) -> str:
    """Return what every key that matches starts with."""
    literal = re.match(r"(?:\\.|[^*?\[\\])*", pattern, re.DOTALL)
    return re.sub(r"\\(.)", r"\1", literal[0], flags=re.DOTALL) if literal else ""


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_LOCK_TIMEOUT_SECONDS, isolation_level=None)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.create_function("matches", 2, _matches, deterministic=True)
    # First of all, for WAL would take over the log of another database that lay here before.
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    ours = (application, version) == (_APPLICATION_ID, _SCHEMA_VERSION)
    if tables and not ours:
        raise sqlite3.DatabaseError("it is of another version")
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    if not ours:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}; COMMIT")


def _create(path: Path) -> None:
    """Make the file ours alone; one that exists is not opened, for that would end SQLite's locks."""
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell files apart that had the same name one after the other."""
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat, and asked all the time
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _outcome_of(operation: Callable[[], Any]) -> Outcome:
    try:
        return operation(), None
    except sqlite3.Error:
        raise  # it concerns the whole transaction
    except Exception as error:  # noqa: BLE001 - it is raised to the caller
        return None, error


def _code(error: sqlite3.Error) -> int | None:
    """Return the primary code, if the error is SQLite's and not of Python's module for it."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _size(text: Value) -> int:
    """Return how many bytes it takes in the file. Raises ValueError for lone surrogates."""
    if isinstance(text, bytes) or text.isascii():
        return len(text)
    return len(text.encode())


def _end_of(prefix: str) -> str | bytes:
    """Return what comes after every key that begins so, in SQLite's order."""
    stem = prefix.rstrip(chr(sys.maxunicode))
    if not stem:
        return b""  # bytes come after all text
    successor = ord(stem[-1]) + 1
    if successor == _FIRST_SURROGATE:
        successor = _LAST_SURROGATE + 1
    return stem[:-1] + chr(successor)


def _matches(pattern: str, key: str) -> bool:
    return compile_pattern(pattern).fullmatch(key) is not None
