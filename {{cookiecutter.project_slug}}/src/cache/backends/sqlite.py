"""The SQLite database of FileBackend; all code here runs in its thread."""

import os
import re
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from src.cache.backends.base import CacheUnavailableError, Value
from src.cache.engine.glob import compile_pattern

FILE_NAME = "cache.sqlite3"
LOCK_NAME = "cache.lock"

_LOCK_TIMEOUT_SECONDS = 2.0
_SCAN_BATCH_SIZE = 1000
_EVICTION_BATCH_SIZE = 16
_MAX_BYTES_BETWEEN_SIZE_CHECKS = 256 * 2**10
_ROW_OVERHEAD_BYTES = 100
_LARGEST_ROW_BYTES = 500 * 2**20  # below SQLite's own limit of 10**9
_MAX_ATTEMPTS = 10  # other processes may replace the file at the same time

_STARTS_WITH = "key >= ? AND key < CAST(? AS TEXT)"  # takes the values of `_range`

_APPLICATION_ID = 0x43616368  # "Cach"
_SCHEMA_VERSION = 2
# Entries are replaced, never updated: the order of the row ids is the order of the writes.
_SCHEMA = f"""
    CREATE TABLE entries (
        key TEXT UNIQUE NOT NULL, value NOT NULL, expires REAL NOT NULL, created REAL NOT NULL
    );
    CREATE INDEX entries_by_end ON entries (expires) WHERE expires < 9e999;
    CREATE TABLE leases (key TEXT PRIMARY KEY, token TEXT NOT NULL, expires REAL NOT NULL)
        WITHOUT ROWID;
    CREATE INDEX leases_by_end ON leases (expires);
    PRAGMA application_id = {_APPLICATION_ID};
    PRAGMA user_version = {_SCHEMA_VERSION};
"""

# WAL: readers and the writer do not wait for each other. synchronous=OFF: writes do not wait for the
# disk, and are twice as fast. A process that dies damages nothing. A power failure may damage the
# file or restore recently deleted values, which is acceptable for a cache.
_PRAGMAS = (
    "auto_vacuum = INCREMENTAL",  # must be set before WAL
    "journal_mode = WAL",
    "synchronous = OFF",
    f"journal_size_limit = {4 * 2**20}",
    "cell_size_check = ON",  # detects damage
)
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# The next attempt replaces the file: on a full disk, deletions need space too. It may fail as well.
_REPLACED = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_DENIED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, *_REPLACED}

Outcome = tuple[Any, Exception | None]

log = structlog.get_logger(__name__)


class Store:
    """A database file and this process's connection to it; for use by one thread.

    Expiry times are wall-clock times, because several processes share the file. If the clock was
    set back, entries of the future are invalid.

    A damaged file is replaced by a new one. If the file was replaced or deleted, a process may still
    have the old file open. It detects this because the path refers to a different file than its
    connection, and then repeats its operations on the new file.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._max_bytes = max_bytes
        self._size_check_interval = min(max_bytes // 64, _MAX_BYTES_BETWEEN_SIZE_CHECKS)
        self._bytes_since_size_check = self._size_check_interval  # check after the first write
        self._connection: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None
        self._damaged_file_id: tuple[int, int] | None = None

    def transact(self, operations: Sequence[Callable[[], Any]], begin: str) -> list[Outcome]:
        """Call the functions in one transaction, or in none if `begin` is empty.

        Raises CacheError if the transaction fails.
        """
        for _ in range(_MAX_ATTEMPTS):
            try:
                outcomes = self._attempt(operations, begin)
            except sqlite3.Error as error:
                self._recover_from(error)
            except OSError as error:
                self.close()
                raise CacheUnavailableError(
                    f"The cache folder {self._folder} cannot be used: {error.strerror}."
                    " Check CACHE_FILE_PATH and the permissions of the folder."
                ) from error
            else:
                if self._file_id == _file_id(self._path):
                    return outcomes
                self._close_lost_file("deleted or replaced")
        raise CacheUnavailableError(
            f"The cache file {self._path} is damaged or replaced repeatedly."
            " CACHE_FILE_PATH must be on a local disk."
        )

    def close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def get(self, key: str) -> Value | None:
        found = self._execute(
            "SELECT value FROM entries WHERE key = ?1 AND expires > ?2 AND created <= ?2",
            *(key, time.time()),
        ).fetchone()
        return found[0] if found else None

    def get_many(self, keys: Iterable[str]) -> list[Value | None]:
        return [self.get(key) for key in keys]

    def set(self, key: str, value: Value, expires: float) -> None:
        size = _byte_size(key) + _byte_size(value)
        if size > min(self._max_bytes, _LARGEST_ROW_BYTES):
            self._execute("DELETE FROM entries WHERE key = ?", key)
            return
        self._execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", key, value, expires, time.time()
        )
        self._bytes_since_size_check += size + _ROW_OVERHEAD_BYTES
        if self._bytes_since_size_check > self._size_check_interval:
            self._bytes_since_size_check = 0
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
        return self._delete(f"{_STARTS_WITH} AND matches(?, key)", *_range(prefix), pattern)

    def scan(self, pattern: str, start: str) -> tuple[list[str], str | None]:
        """Return a batch of matching keys, and the start of the next batch (None at the end)."""
        prefix = _literal_prefix(pattern)
        rows = self._execute(
            f"SELECT key FROM entries WHERE {_STARTS_WITH} AND key >= ? AND expires > ?"  # noqa: S608
            " ORDER BY key LIMIT ?",
            *(*_range(prefix), start, time.time(), _SCAN_BATCH_SIZE),
        ).fetchall()
        matches = compile_pattern(pattern).fullmatch
        after = rows[-1][0] + "\0" if len(rows) == _SCAN_BATCH_SIZE else None
        return [key for (key,) in rows if matches(key)], after

    def flush(self) -> None:
        self._execute("DELETE FROM entries")
        self._execute("DELETE FROM leases")
        self._release_pages(self._pragma("freelist_count"))

    def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        now = time.time()
        self._execute(
            "DELETE FROM leases WHERE expires <= ? OR key = ? AND expires > ?",
            *(now, key, now + seconds),
        )
        inserted = self._execute(
            "INSERT OR IGNORE INTO leases VALUES (?, ?, ?)", key, token, now + seconds
        )
        return inserted.rowcount == 1

    def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        now = time.time()
        renewed = self._execute(
            "UPDATE leases SET expires = ? WHERE key = ? AND token = ? AND expires > ?",
            *(now + seconds, key, token, now),
        )
        return renewed.rowcount == 1

    def set_if_leased(self, key: str, token: str, value: Value, expires: float) -> bool:
        _byte_size(value)  # raises for invalid text, before the lease ends
        if not self.release_lease(key, token):
            return False
        self.set(key, value, expires)
        return True

    def release_lease(self, key: str, token: str) -> bool:
        """Return whether the lease was still valid."""
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
        """Delete entries and leases. Return how many of the entries had not expired."""
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
        self._release_pages(
            self._pragma("page_count") - self._max_bytes // self._pragma("page_size")
        )

    def _release_pages(self, pages: int) -> None:
        # One page per statement: Python 3.11 executes only the first step, which releases one page.
        for _ in range(pages):
            self._execute("PRAGMA incremental_vacuum(1)").fetchall()

    def _evict(self, selection: str, *parameters: float) -> int:
        chosen = f"SELECT rowid FROM entries {selection} LIMIT {_EVICTION_BATCH_SIZE}"  # noqa: S608
        return self._execute(
            f"DELETE FROM entries WHERE rowid IN ({chosen})",  # noqa: S608
            *parameters,
        ).rowcount

    def _bytes_used(self) -> int:
        """Return the size without free pages, which SQLite reuses."""
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
            self._delete_damaged_files()
            _create_private_file(self._path)
            self._file_id = _file_id(self._path)
            connection = _connect(self._path)
            try:
                _prepare(connection)
            except sqlite3.Error:
                connection.close()
                raise
        self._connection = connection
        return connection

    def _delete_damaged_files(self) -> None:
        """Delete the damaged file, unless another process has already replaced it.

        Delete SQLite's log files too, even if the database file itself is missing. A new database
        must not use log files that processes with the old file have mapped into memory.
        """
        if _file_id(self._path) in {None, self._damaged_file_id}:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._damaged_file_id = None

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Let one process at a time create or delete the files.

        This is a SQLite lock, which works on every platform, on a file that is never written to.
        """
        path = self._folder / LOCK_NAME
        _create_private_file(path)
        with closing(_connect(path)) as lock:
            try:
                lock.execute("PRAGMA journal_mode = MEMORY")  # the disk may be full
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                if _primary_error_code(error) not in _BUSY:
                    path.unlink(missing_ok=True)
                raise
            yield

    def _recover_from(self, error: sqlite3.Error) -> None:
        """Return if another attempt may succeed. Raises CacheError otherwise."""
        code = _primary_error_code(error)
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.rollback()
        if code in _BUSY:
            raise CacheUnavailableError(
                f"The cache file {self._path} was locked for over {_LOCK_TIMEOUT_SECONDS:g} s."
            ) from error
        if isinstance(error, sqlite3.ProgrammingError):
            raise error
        if self._file_id != _file_id(self._path):
            self._close_lost_file("deleted or replaced")
        elif code in _DENIED:
            if code in _REPLACED:
                self._damaged_file_id = self._file_id
            self.close()
            raise CacheUnavailableError(
                f"The cache file {self._path} cannot be used: {error}."
                " Check CACHE_FILE_PATH and the permissions of the file."
            ) from error
        else:
            self._damaged_file_id = self._file_id
            self._close_lost_file(str(error))

    def _close_lost_file(self, cause: str) -> None:
        log.warning("cache_file_lost", cause=cause)
        self.close()


def _literal_prefix(pattern: str) -> str:
    """Return the text that every matching key starts with."""
    literal = re.match(r"(?:\\.|[^*?\[\\])*", pattern, re.DOTALL)
    return re.sub(r"\\(.)", r"\1", literal[0], flags=re.DOTALL) if literal else ""


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_LOCK_TIMEOUT_SECONDS, isolation_level=None)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.create_function("matches", 2, _matches, deterministic=True)
    # Check before the PRAGMAs: WAL mode would read the log of a different database.
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    is_current_schema = (application, version) == (_APPLICATION_ID, _SCHEMA_VERSION)
    if tables and not is_current_schema:
        raise sqlite3.DatabaseError("the schema has a different version")
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    if not is_current_schema:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}; COMMIT")


def _create_private_file(path: Path) -> None:
    """Create a file that only its owner can read.

    Do not open an existing file: closing it would release the SQLite locks of this process.
    """
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)


def _file_id(path: Path) -> tuple[int, int] | None:
    """Identify the file: a replaced file has the same path, but a different id."""
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat, and called often
    except OSError:  # the file or its folder was deleted, replaced or is inaccessible
        return None
    return found.st_dev, found.st_ino


def _outcome_of(operation: Callable[[], Any]) -> Outcome:
    try:
        return operation(), None
    except sqlite3.Error:
        raise  # the whole transaction fails
    except Exception as error:  # noqa: BLE001 - it is raised to the caller
        return None, error


def _primary_error_code(error: sqlite3.Error) -> int | None:
    """Return the primary error code of SQLite; None for an error of Python's sqlite3 module."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _byte_size(text: Value) -> int:
    """Return the size in the file. Raises ValueError for lone surrogates."""
    if isinstance(text, bytes) or text.isascii():
        return len(text)
    return len(text.encode())


def _range(prefix: str) -> tuple[str, bytes]:
    return prefix, prefix.encode() + b"\xff"  # SQLite compares the bytes; text contains no 0xff


def _matches(pattern: str, key: str) -> bool:
    return compile_pattern(pattern).fullmatch(key) is not None
