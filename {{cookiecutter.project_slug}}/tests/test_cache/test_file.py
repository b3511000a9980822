# ruff: noqa: ASYNC240 - a test may wait for a small file
import asyncio
import shutil
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from src.cache.backends import sqlite
from src.cache.backends.base import CacheUnavailableError
from src.cache.backends.file import FileBackend
from src.cache.backends.sqlite import FILE_NAME, LOCK_NAME
from src.cache.doctor import check_cache
from src.core.config import ROOT, Settings
from src.doctor import CheckError
from tests.test_cache.contract import BackendContract, keys_of, set_all

VALUES: dict[str, str | bytes] = {f"key{number}": "value" * 100 for number in range(2000)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / FILE_NAME


@pytest.fixture
async def backend(folder: Path) -> AsyncGenerator[FileBackend]:
    async with FileBackend(folder) as backend:
        yield backend


@pytest.fixture
async def other(folder: Path) -> AsyncGenerator[FileBackend]:
    """Another backend on the same file."""
    async with FileBackend(folder) as backend:
        yield backend


class TestContract(BackendContract):
    @pytest.fixture
    async def other_namespace(self, tmp_path: Path) -> AsyncGenerator[FileBackend]:
        async with FileBackend(tmp_path / "other_namespace") as backend:
            yield backend


async def assert_works(backend: FileBackend) -> None:
    await backend.set("new", "value")
    assert await backend.get("new") == "value"
    assert await backend.acquire_lease("leased", "token", 60)
    assert await backend.delete_matching("*") == 1


async def test_values_and_leases_survive_a_restart(folder: Path) -> None:
    async with FileBackend(folder) as backend:
        await set_all(backend, {"text": "a", "bytes": b"b"}, ex=60)
        await backend.acquire_lease("key", "token", 60)

    async with FileBackend(folder) as backend:
        assert await backend.get_many("text", "bytes") == ["a", b"b"]
        assert await backend.set_if_leased("key", "token", "value")


@pytest.mark.skipif(sys.platform == "win32", reason="file modes exist on POSIX only")
async def test_only_the_owner_can_read_the_files(backend: FileBackend, folder: Path) -> None:
    await backend.set("key", "value")

    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}

    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(modes.values()) == {0o600}
    assert FILE_NAME in modes


def _garbage(file: Path) -> None:
    file.write_bytes(b"\xa5" * file.stat().st_size)


def _nothing(file: Path) -> None:
    file.write_bytes(b"")


def _damaged_pages(file: Path) -> None:
    """Do not change the first page, which contains the schema."""
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (file.stat().st_size - 4096))


def _deleted(file: Path) -> None:
    file.unlink()


def _folder_deleted(file: Path) -> None:
    shutil.rmtree(file.parent)


def _other_schema(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE entries (something TEXT)")


def _other_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")


DAMAGE = [
    *(_garbage, _nothing, _damaged_pages, _deleted, _folder_deleted, _other_schema),
    _other_version,
]


@pytest.mark.parametrize("damage", DAMAGE)
async def test_file_damaged_while_closed_is_replaced_by_an_empty_one(
    folder: Path, file: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage is logged once. A missing or empty file is not logged."""
    logged: list[str] = []
    monkeypatch.setattr(sqlite.log, "warning", lambda event, **_: logged.append(event))
    async with FileBackend(folder) as backend:
        await set_all(backend, VALUES)
    damage(file)

    async with FileBackend(folder) as backend:
        found = await backend.get_many(*VALUES)
        await backend.flush()
        await assert_works(backend)

    assert set(found) <= {None, *VALUES.values()}
    assert None in found
    assert logged == [] if damage in {_nothing, _deleted, _folder_deleted} else ["cache_file_lost"]


async def test_values_and_leases_expire_when_the_clock_is_set_back(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.set("key", "value", ex=60)
    await backend.acquire_lease("leased", "one", 60)
    hour_ago = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: hour_ago)

    assert await backend.get("key") is None
    assert await backend.acquire_lease("leased", "two", 60)
    await backend.set("key", "new", ex=60)
    assert await backend.get("key") == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete open files")
@pytest.mark.parametrize("damage", DAMAGE)
async def test_two_open_backends_recover_from_damage(
    backend: FileBackend, other: FileBackend, file: Path, damage: Callable[[Path], None]
) -> None:
    """Both continue with the same new file."""
    await set_all(backend, VALUES)
    await other.get("key0")
    damage(file)

    found = await asyncio.gather(backend.get_many(*VALUES), other.get_many(*VALUES))
    await asyncio.gather(backend.add("shared", "1"), other.add("shared", "2"))
    await asyncio.gather(backend.flush(), other.flush())

    assert set(found[0] + found[1]) <= {None, *VALUES.values()}
    await assert_works(backend)
    await assert_works(other)
    await backend.set("key", "value")
    assert await other.get("key") == "value"


async def test_backend_is_unavailable_while_its_path_is_blocked(folder: Path, file: Path) -> None:
    async with FileBackend(folder) as backend:
        folder.write_text("not a folder")
        for operation in (backend.get("key"), backend.set("key", "value"), backend.ping()):
            with pytest.raises(CacheUnavailableError, match="folder"):
                await operation
        with pytest.raises(CheckError, match="Check CACHE_FILE_PATH"):
            await check_cache(Settings(CACHE_BACKEND_TYPE="file", CACHE_FILE_PATH=folder))

        folder.unlink()
        file.mkdir(parents=True)
        with pytest.raises(CacheUnavailableError, match="cannot be used"):
            await backend.get("key")

        file.rmdir()
        (folder / LOCK_NAME).write_text("This is not a database. " * 100)  # only locked, never read
        await assert_works(backend)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete open files")
async def test_open_backend_is_unavailable_while_its_path_is_blocked(
    backend: FileBackend, folder: Path
) -> None:
    await backend.set("key", "value")
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    for operation in (backend.get("key"), backend.delete("key"), backend.ping()):
        with pytest.raises(CacheUnavailableError, match="folder"):
            await operation

    folder.unlink()
    await assert_works(backend)


async def test_writes_fail_and_reads_succeed_while_the_file_is_locked(
    backend: FileBackend, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_LOCK_TIMEOUT_SECONDS", 0.1)
    await backend.set("key", "value")
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        read, written = await asyncio.gather(
            backend.get("key"), backend.set("key", "new"), return_exceptions=True
        )
        assert read == "value"
        assert isinstance(written, CacheUnavailableError)
        with pytest.raises(CacheUnavailableError, match="locked"):
            await backend.ping()

    await backend.delete("key")
    await assert_works(backend)


async def test_full_disk_empties_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletions need space too, so that the file could never become smaller."""
    monkeypatch.setattr(sqlite, "_PRAGMAS", (*sqlite._PRAGMAS, "max_page_count = 50"))  # noqa: SLF001
    async with FileBackend(folder) as backend:
        await backend.set("key", "value")
        with pytest.raises(CacheUnavailableError, match="full"):
            await backend.set("big", b"x" * 2**20)

        assert await backend.get_many("key", "big") == [None, None]
        await assert_works(backend)


async def test_failed_call_does_not_fail_other_calls_in_its_batch(backend: FileBackend) -> None:
    outcomes = await asyncio.gather(
        backend.set("a", "1"),
        backend.set("bad", "\ud800"),
        backend.set("c", "3"),
        return_exceptions=True,
    )

    assert isinstance(outcomes[1], UnicodeEncodeError)
    assert await backend.get_many("a", "bad", "c") == ["1", None, "3"]


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("size", [10, 3000, 100_000])
async def test_size_is_limited(folder: Path, size: int) -> None:
    """The values that were written last remain."""
    limit = 2 * 2**20
    count = 4 * limit // (size + 200)
    async with FileBackend(folder, max_bytes=limit) as backend:
        for start in range(0, count, 100):
            batch: dict[str, str | bytes] = {
                f"key{number}": bytes(size) for number in range(start, start + 100)
            }
            await set_all(backend, batch)
            assert (folder / FILE_NAME).stat().st_size < limit * 1.2
            assert size_on_disk(folder) < limit * 1.2 + 16 * 2**20
        found = [value is not None for value in await backend.get_many(*batch)]

        assert await backend.get("key0") is None
        assert found[-1]
        assert found == sorted(found)
        await backend.flush()
    assert size_on_disk(folder) < limit / 2


async def test_value_larger_than_the_limit_is_not_stored(folder: Path) -> None:
    """It evicts no other value. The old value of the key is deleted."""
    async with FileBackend(folder, max_bytes=2**20) as backend:
        await set_all(backend, {"other": "value", "key": "old"})

        await backend.set("key", bytes(2**20))

        assert await backend.get_many("key", "other") == [None, "value"]


FILL_DISK = """
import asyncio, sys
from pathlib import Path
from src.cache.backends.file import FileBackend
from src.cache.engine.circuit_breaker import CircuitBreakerBackend

async def fill(folder):
    async with CircuitBreakerBackend(FileBackend(folder)) as backend:
        number = 0
        while backend.available:
            number += 1
            await backend.set(f"key{number}", bytes(10_000))
        assert await backend.get("key1") is None
        while not backend.available:
            await asyncio.sleep(0.05)
        await backend.set("key", "value")
        assert await backend.get_many("key", "key1") == ["value", None]

asyncio.run(asyncio.wait_for(fill(Path(sys.argv[1]) / "cache"), 60))
"""
IN_SMALL_DISK = ["unshare", "-Urm", "sh", "-ec", 'mount -t tmpfs -o size=2m tmpfs "$0"; exec "$@"']


@pytest.mark.slow
async def test_cache_that_filled_its_disk_recovers(tmp_path: Path) -> None:
    async def run(*command: str) -> int:
        process = await asyncio.create_subprocess_exec(
            *(*IN_SMALL_DISK, str(tmp_path), *command), cwd=ROOT
        )
        return await process.wait()

    if not shutil.which("unshare") or await run("true") != 0:
        pytest.skip("needs Linux's unshare to mount a small disk")
    assert await run(sys.executable, "-c", FILL_DISK, str(tmp_path)) == 0


WORK = """
import asyncio, sys
from pathlib import Path
from src.cache.backends.file import FileBackend

async def work(folder, name):
    async with FileBackend(Path(folder)) as backend:
        added = leased = 0
        for number in range(100):
            await backend.set(f"{name}:{number}", name)
            added += await backend.add(f"add{number}", name)
            leased += await backend.acquire_lease(f"lease{number}", name, 60)
        print(added, leased)

asyncio.run(work(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_concurrent_processes_lose_no_values(backend: FileBackend, folder: Path) -> None:
    """Four processes create the file at the same time. One of them wins each race."""

    async def work(name: str) -> list[int]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", WORK, folder, name), cwd=ROOT, stdout=PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return [int(number) for number in output.split()]

    async with asyncio.timeout(120):
        won = await asyncio.gather(*(work(str(number)) for number in range(4)))

    assert len(await keys_of(backend, "?:*")) == 400
    assert [sum(column) for column in zip(*won, strict=True)] == [100, 100]
