"""The cache in a file, which the processes of one machine share and a restart does not empty."""

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

_BATCH = 64

P = ParamSpec("P")
T = TypeVar("T")


class _Transaction(NamedTuple):
    """How a transaction begins; one statement alone needs none, which saves a third of its time."""

    together: str
    alone: str


READ = _Transaction("BEGIN", alone="BEGIN")
WRITE = _Transaction("BEGIN IMMEDIATE", alone="BEGIN IMMEDIATE")
GET = _Transaction("BEGIN", alone="")
SET = _Transaction("BEGIN IMMEDIATE", alone="")


@dataclass(slots=True, frozen=True)
class _Job:
    kind: _Transaction
    operation: Callable[[], Any]
    future: asyncio.Future[Any]


class FileBackend(CacheBackend):
    """A SQLite database in the folder `path`; a damaged one is as good as an empty one.

    Bounded by `max_bytes`: expired values go first, then those that were written the longest time
    ago. A read does not count as use, for then every read would write. Beside the database there
    is SQLite's log of a few MiB. A value that is alone bigger than `max_bytes` is not stored.

    The file is opened when it is first needed, in a thread that does one batch at a time: all
    reads that wait in one transaction, then all writes in another. For use on one event loop. Each
    process needs a backend of its own, that it did not use before it was forked.
    """

    name = "file"

    def __init__(
        self, path: Path, *, ttl: float | None = None, max_bytes: int = 256 * 2**20
    ) -> None:
        super().__init__(ttl=ttl)
        self._store = Store(path, max_bytes)
        # No thread of our own: an executor's does not keep the interpreter alive, and is not
        # killed at its end in the middle of a write either.
        self._executor: ThreadPoolExecutor | None = None
        self._waiting: list[_Job] = []
        self._busy = False
        self._undelivered = 0

    async def aclose(self) -> None:
        if self._executor is None:
            return
        with suppress(CacheError):
            await self.ping()  # what was asked for before is done by then
        executor, self._executor = self._executor, None
        await asyncio.get_running_loop().run_in_executor(executor, self._store.close)
        executor.shutdown()

    async def get(self, key: str) -> Value | None:
        return await self._do(GET, self._store.get, key)

    async def get_many(self, *keys: str) -> list[Value | None]:
        return await self._do(READ, self._store.get_many, keys)

    async def set(self, key: str, value: Value, ex: float | None = None) -> None:
        await self._do(SET, self._store.set, key, value, self._expiry(ex))

    async def add(self, key: str, value: Value, ex: float | None = None) -> bool:
        return await self._do(WRITE, self._store.add, key, value, self._expiry(ex))

    async def delete(self, *keys: str) -> int:
        return await self._do(WRITE, self._store.delete, keys)

    async def delete_matching(self, pattern: str) -> int:
        return await self._do(WRITE, self._store.delete_matching, pattern)

    async def scan(self, pattern: str = "*") -> AsyncIterator[str]:
        start: str | None = ""
        while start is not None:
            keys, start = await self._do(READ, self._store.scan, pattern, start)
            for key in keys:
                yield key

    async def flush(self) -> None:
        await self._do(WRITE, self._store.flush)

    async def acquire_lease(self, key: str, token: str, seconds: float) -> bool:
        return await self._do(WRITE, self._store.acquire_lease, key, token, seconds)

    async def renew_lease(self, key: str, token: str, seconds: float) -> bool:
        return await self._do(WRITE, self._store.renew_lease, key, token, seconds)

    async def set_if_leased(
        self, key: str, token: str, value: Value, ex: float | None = None
    ) -> bool:
        return await self._do(WRITE, self._store.set_if_leased, key, token, value, self._expiry(ex))

    async def release_lease(self, key: str, token: str) -> None:
        await self._do(WRITE, self._store.release_lease, key, token)

    async def ping(self) -> None:
        await self._do(WRITE, time.time)  # it is enough that a transaction can be had

    async def info(self) -> dict[str, Any]:
        return await self._do(READ, self._store.info)

    def _expiry(self, ex: float | None) -> float:
        seconds = self.lifetime(ex)
        return math.inf if seconds is None else time.time() + seconds

    def _do(
        self, kind: _Transaction, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Job(kind, partial(operation, *args, **kwargs), future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start)  # not at once: others that are ready are in the batch
        return future

    def _start(self) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache")
        batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
        self._undelivered = len(batch)
        self._executor.submit(self._work, batch)

    def _work(self, batch: list[_Job]) -> None:
        """Do the jobs, in the thread; the writes last, for they may have to wait for a lock."""
        for begin in ("BEGIN", "BEGIN IMMEDIATE"):
            jobs = [job for job in batch if job.kind.together == begin]
            if not jobs:
                continue
            outcomes = self._outcomes(jobs)
            with suppress(RuntimeError):  # the loop was closed: no caller waits
                jobs[0].future.get_loop().call_soon_threadsafe(self._deliver, jobs, outcomes)

    def _outcomes(self, jobs: list[_Job]) -> list[Outcome]:
        begin = jobs[0].kind.together if len(jobs) > 1 else jobs[0].kind.alone
        try:
            return self._store.transact([job.operation for job in jobs], begin)
        except CacheUnavailableError as error:
            return [(None, error)] * len(jobs)
        except Exception as error:  # noqa: BLE001 - it is raised to the caller
            if len(jobs) == 1:
                return [(None, error)]
            # One was at fault, as with a value that the disk had no room for: not the others.
            return [outcome for job in jobs for outcome in self._outcomes([job])]

    def _deliver(self, jobs: list[_Job], outcomes: list[Outcome]) -> None:
        self._undelivered -= len(jobs)
        if self._undelivered == 0:
            self._busy = bool(self._waiting)
            if self._busy:
                self._start()
        for job, (result, error) in zip(jobs, outcomes, strict=True):
            if job.future.done():
                continue  # its caller was cancelled
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
