"""Elapsed or processor time beside minimal implementations.

- A decorated call: other libraries; processor time.
- A value on disk: SQLite in a thread; elapsed time.

Everything runs in one process, in turns.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiocache
import cashews
from harness import CONCURRENCY
from pydantic import BaseModel
from report import ROUNDS, Costs, report

from src.cache import Cache, CacheBackend, MemoryBackend, cached, use_cache
from src.cache.backends.file import FileBackend

CALLS = 10_000
BODY = b"x" * 200


class User(BaseModel):
    id: str
    name: str


async def calls() -> None:
    cashews.cache.setup("mem://")
    decorators = {
        "aiocache": aiocache.cached(ttl=300),
        "cashews": cashews.cache(ttl="300s", key="user:{user_id}"),
        "service": cached(ttl=300, key_prefix="user"),
    }
    for kind, value in {dict[str, str]: {"name": "Ada"}, User: User(id="7", name="Ada")}.items():
        costs: Costs = {name: [] for name in decorators}

        async def get_user(user_id: str) -> Any:  # noqa: ARG001 - the key
            return value  # noqa: B023 - called before the next round

        get_user.__annotations__["return"] = kind
        get_user.__qualname__ += kind.__name__
        functions = {name: decorate(get_user) for name, decorate in decorators.items()}
        with use_cache(Cache(MemoryBackend(), ttl=300)):
            for _ in range(ROUNDS):
                for name, function in functions.items():
                    costs[name].append(await each(function, "7"))
        report(f"A decorated hit in memory: {kind.__name__}", costs)


async def each(function: Callable[..., Awaitable[Any]], *args: Any) -> float:
    started = time.process_time()
    for _ in range(CALLS):
        await function(*args)
    return (time.process_time() - started) / CALLS * 1e6


class MinimalFile:
    """A minimal store on disk: SQLite in WAL mode, in a separate thread."""

    def __init__(self, folder: Path) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.path = folder / "bare.sqlite3"
        self.thread.submit(self._open).result()

    def _open(self) -> None:
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def _get(self, key: str) -> bytes | None:
        row = self.db.execute("SELECT value FROM entry WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _set(self, key: str, value: bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?)", (key, value))

    async def get(self, key: str) -> bytes | None:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._get, key)

    async def set(self, key: str, value: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, self._set, key, value)

    async def aclose(self) -> None:
        self.thread.submit(self.db.close).result()
        self.thread.shutdown()


@asynccontextmanager
async def stores() -> AsyncGenerator[dict[str, CacheBackend | MinimalFile]]:
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "minimal": MinimalFile(Path(folder)),
            "service": FileBackend(Path(folder), ttl=300),
        }
        yield found
        for store in found.values():
            await store.aclose()


async def disk(clients: int) -> None:
    async with stores() as found:
        for operation in ("set", "get"):
            costs: Costs = {name: [] for name in found}
            for _ in range(ROUNDS):
                for name, store in found.items():
                    costs[name].append(await hammer(store, operation, clients))
            report(f"A {operation} on disk, {clients} clients", costs)


async def hammer(store: CacheBackend | MinimalFile, operation: str, clients: int) -> float:
    """Return elapsed microseconds per operation; processor time would miss the thread."""

    async def client(number: int) -> None:
        for count in range(CALLS // 4 // clients):
            key = f"{number}:{count % 100}"
            await (store.set(key, BODY) if operation == "set" else store.get(key))

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return (time.perf_counter() - started) / (CALLS // 4) * 1e6


async def main() -> None:
    await calls()
    await disk(1)
    await disk(CONCURRENCY)


if __name__ == "__main__":
    asyncio.run(main())
