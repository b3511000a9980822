"""File cache backend: processes on one machine share it, and it survives restarts."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from src.cache.backends.base import CacheBackend, CacheError, CacheUnavailableError, Value
from src.cache.backends.sqlite import Outcome, Store

_MAX_BATCH_SIZE = 64

P = ParamSpec("P")
T = TypeVar("T")


class _BeginStatements(NamedTuple):
    """The SQL that begins the transaction of a batch, or of a single call.

    A single SQL statement needs no explicit transaction, and is a third faster without it.
    """

    batched: str
    single: str


READ = _BeginStatements("BEGIN", single="BEGIN")
WRITE = _BeginStatements("BEGIN IMMEDIATE", single="BEGIN IMMEDIATE")
GET = _BeginStatements("BEGIN", single="")
SET = _BeginStatements("BEGIN IMMEDIATE", single="")


@dataclass(slots=True, frozen=True)
class _Call:
    begin: _BeginStatements
    function: Callable[[], Any]
    future: asyncio.Future[Any]


class FileBackend(CacheBackend):
    """A SQLite database in the folder `path`. A damaged database is replaced by an empty one.

    Above `max_bytes`, expired values are evicted first, then the values that were written first.
    Reads do not change this order, because each read would then need a write. The limit does not
    include SQLite's write-ahead log of a few MiB. A single value larger than `max_bytes` is not
    stored.

    A thread executes the pending calls in batches: one transaction for all reads, then one for all
    writes. Use a backend on one event loop only. Each process needs a separate backend, which must
    not be used before a fork.
    """

    name = "file"

    def __init__(
        self, path: Path, *, ttl: float | None = None, max_bytes: int = 256 * 2**20
    ) -> None:
        super().__init__(ttl=ttl)
        self._store = Store(path, max_bytes)
        # Not a `threading.Thread`: an executor finishes its current write when the interpreter exits,
        # and does not prevent the exit.
        self._executor: ThreadPoolExecutor | None = None
        self._pending: list[_Call] = []
        self._is_running = False
        self._undelivered = 0

    async def aclose(self) -> None:
        if self._executor is None:
            return
        with suppress(CacheError):
            await self.ping()  # wait for pending calls
        executor, self._executor = self._executor, None
        await asyncio.get_running_loop().run_in_executor(executor, self._store.close)
        executor.shutdown()

    async def get(self, key: str) -> Value | None:
        return await self._submit(GET, self._store.get, key)

    async def get_many(self, *keys: str) -> list[Value | None]:
        return await self._submit(READ, self._store.get_many, keys)

    async def set(self, key: str, value: Value, ex: float | None = None) -> None:
        await self._submit(SET, self._store.set, key, value, self._expiry(ex))

    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        return await self._submit(WRITE, self._store.add, key, value, self._expiry(ex))

    async def delete(self, *keys: str) -> int:
        return await self._submit(WRITE, self._store.delete, keys)

    async def delete_matching(self, pattern: str) -> int:
        return await self._submit(WRITE, self._store.delete_matching, pattern)

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        start: str | None = ""
        while start is not None:
            keys, start = await self._submit(READ, self._store.scan, pattern, start)
            for key in keys:
                yield key

    async def flush(self) -> None:
        await self._submit(WRITE, self._store.flush)

    async def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        return await self._submit(WRITE, self._store.acquire_lease, key, token, seconds)

    async def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        return await self._submit(WRITE, self._store.renew_lease, key, token, seconds)

    async def set_if_leased(
        self, key: str, token: str, value: Value, ex: float | None = None
    ) -> bool:
        return await self._submit(
            WRITE, self._store.set_if_leased, key, token, value, self._expiry(ex)
        )

    async def release_lease(self, key: str, token: str) -> None:
        await self._submit(WRITE, self._store.release_lease, key, token)

    async def ping(self) -> None:
        await self._submit(WRITE, time.time)  # any function: this tests whether a write can begin

    async def info(self) -> dict[str, Any]:
        return await self._submit(READ, self._store.info)

    def _expiry(self, ex: float | None) -> float:
        seconds = self.lifetime(ex)
        return math.inf if seconds is None else time.time() + seconds

    def _submit(
        self, begin: _BeginStatements, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._pending.append(_Call(begin, partial(function, *args, **kwargs), future))
        if not self._is_running:
            self._is_running = True
            loop.call_soon(self._start_batch)  # not immediately: more calls may join the batch
        return future

    def _start_batch(self) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
        batch, self._pending = self._pending[:_MAX_BATCH_SIZE], self._pending[_MAX_BATCH_SIZE:]
        self._undelivered = len(batch)
        self._executor.submit(self._run_batch, batch)

    def _run_batch(self, batch: list[_Call]) -> None:
        """Execute the calls in the thread. Writes come last, because they may wait for a lock."""
        for begin in ("BEGIN", "BEGIN IMMEDIATE"):
            calls = [call for call in batch if call.begin.batched == begin]
            if not calls:
                continue
            outcomes = self._run_in_transaction(calls)
            with suppress(RuntimeError):  # the event loop was closed
                calls[0].future.get_loop().call_soon_threadsafe(self._deliver, calls, outcomes)

    def _run_in_transaction(self, calls: list[_Call]) -> list[Outcome]:
        begin = calls[0].begin.batched if len(calls) > 1 else calls[0].begin.single
        try:
            return self._store.transact([call.function for call in calls], begin)
        except CacheUnavailableError as error:
            return [(None, error)] * len(calls)
        except Exception as error:  # noqa: BLE001 - it is raised to the caller
            if len(calls) == 1:
                return [(None, error)]
            # One call failed, for example because of its type. Execute each call separately.
            return [outcome for call in calls for outcome in self._run_in_transaction([call])]

    def _deliver(self, calls: list[_Call], outcomes: list[Outcome]) -> None:
        self._undelivered -= len(calls)
        if self._undelivered == 0:
            self._is_running = bool(self._pending)
            if self._is_running:
                self._start_batch()
        for call, (result, error) in zip(calls, outcomes, strict=True):
            if call.future.done():
                continue  # the caller was cancelled
            if error is None:
                call.future.set_result(result)
            else:
                call.future.set_exception(error)
