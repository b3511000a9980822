"""What every cache backend must do; each backend's tests run all of it.

A subclass provides two fixtures, both empty at first: `backend`, and `neighbour`, which shares
with it whatever such backends can share, but not the namespace.

Times are real, for a server has a clock of its own. A test waits until something is gone, for
seconds if it must, and never expects it to be gone by a certain moment.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

import pytest

from src.cache.backends.base import CacheBackend, Value

SOON = 0.05
PATIENCE_SECONDS = 60
MINUTE = 60.0

VALUES: dict[str, Value] = {
    "empty text": "",
    "none": "None",
    "unicode": "Zürich 東京 🦊",
    "control characters": "a\0b\r\nc\0",
    "bytes": b"value",
    "empty bytes": b"",
    "every byte": bytes(range(256)),
    "big text": "ä" * 2**19,
    "big bytes": bytes(2**20),
}
KEYS = [
    "",
    " ",
    "two words",
    "line\nbreak",
    "tab\tNUL\0",
    "Zürich 東京 🦊",
    "a'b\"c`d;--",
    "*?[a-z]\\",
    "{}%s:$1",
    "k" * 5000,
]

STORED = {
    *("a", "ab", "abc", "a*c", "a?c", "a[c", "a]c", "a^c", "a-c", "a\\c"),
    *("user:1", "user:2", "user:10", "user:1:name", "user\n1", "%", "_", "x_y"),
}
PATTERNS = {
    "*": STORED,
    "": set(),
    "a": {"a"},
    "A": set(),
    "a?": {"ab"},
    "*_*": {"_", "x_y"},
    "user:*": {"user:1", "user:2", "user:10", "user:1:name"},
    "user:?": {"user:1", "user:2"},
    "user*1": {"user:1", "user\n1"},
    "*:name": {"user:1:name"},
    "user:[12]": {"user:1", "user:2"},
    "user:[0-1]": {"user:1"},
    "user:[^1]": {"user:2"},
    "user:[!1]": {"user:1"},
    "a\\*c": {"a*c"},
    "a\\\\c": {"a\\c"},
    "a[*?]c": {"a*c", "a?c"},
    "a[\\]]c": {"a]c"},
    "a[b^]c": {"abc", "a^c"},
    "a[\\-b]c": {"a-c", "abc"},
    "a[]c": set(),
    "a[bc": {"ab"},
}


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    """Wait until a function, async or not, returns True: time that passes has no event."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = condition()
            if (await found) if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(SOON / 10)


async def until_gone(backend: CacheBackend, key: str) -> None:
    async def gone() -> bool:
        return await backend.get(key) is None

    await until(gone)


async def keys_of(backend: CacheBackend, pattern: str = "*") -> list[str]:
    return sorted([key async for key in backend.scan(pattern)])


async def set_all(
    backend: CacheBackend, values: Mapping[str, Value] | Iterable[str], ex: float | None = None
) -> None:
    values = values if isinstance(values, Mapping) else dict.fromkeys(values, "value")
    await asyncio.gather(*(backend.set(key, value, ex) for key, value in values.items()))


Write = Callable[[CacheBackend, str, Value, float | None], Awaitable[object]]


async def set_with_lease(backend: CacheBackend, key: str, value: Value, ex: float | None) -> None:
    await backend.acquire_lease(key, "token", MINUTE)
    assert await backend.set_if_leased(key, "token", value, ex)


WRITES: dict[str, Write] = {
    "set": lambda backend, *args: backend.set(*args),
    "add": lambda backend, *args: backend.add(*args),
    "set_if_leased": set_with_lease,
}
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)

DELETIONS: dict[str, Callable[[CacheBackend], Awaitable[int | None]]] = {
    "delete": lambda backend: backend.delete("key"),
    "exact": lambda backend: backend.delete_matching("key"),
    "pattern": lambda backend: backend.delete_matching("k?[x-z]"),
    "all": lambda backend: backend.delete_matching("*"),
    "flush": lambda backend: backend.flush(),
}


class BackendContract:
    @every_write
    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
    async def test_value_comes_back(
        self, backend: CacheBackend, write: Write, value: Value
    ) -> None:
        """A value comes back equal and of the same type, whichever way it was set."""
        assert await backend.get("key") is None
        await write(backend, "key", value, None)

        found = await backend.get("key")

        assert found == value
        assert type(found) is type(value)
        assert await backend.get_many("key") == [value]
        for other in (b"bytes", "text"):
            await backend.set("key", other)
            assert await backend.get("key") == other

    @pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:20]))
    async def test_any_text_is_a_key(self, backend: CacheBackend, key: str) -> None:
        """Any text may be a key, and means no more than itself."""
        await set_all(backend, ["other", key + "x"])

        await backend.set(key, "value")

        assert await backend.get_many(key) == [await backend.get(key)] == ["value"]
        assert await keys_of(backend) == sorted([key, "other", key + "x"])
        assert await backend.acquire_lease(key, "token", MINUTE)
        assert await backend.set_if_leased(key, "token", "new")
        assert await backend.delete(key) == 1
        assert await backend.get_many(key, "other", key + "x") == [None, "value", "value"]

    @pytest.mark.parametrize(("key", "value"), [("key", "\ud800"), ("\ud800", "value")])
    async def test_text_without_utf8_is_refused(
        self, backend: CacheBackend, key: str, value: str
    ) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            await backend.set(key, value)
        assert await keys_of(backend) == []

    async def test_get_many_keeps_the_order(self, backend: CacheBackend) -> None:
        await set_all(backend, {"a": "1", "b": b"2", "empty": ""})

        found = await backend.get_many("b", "none", "a", "b", "empty")

        assert found == [b"2", None, "1", b"2", ""]
        assert (await backend.get_many(), await backend.delete()) == ([], 0)

    @every_write
    async def test_value_expires(self, backend: CacheBackend, write: Write) -> None:
        """A value set with `ex` is there at first, also for a fraction of a second, then gone."""
        await write(backend, "key", "1", MINUTE + 0.5)
        assert await backend.get_many("key") == ["1"]

        await backend.delete("key")
        await write(backend, "key", "1", SOON)
        await until_gone(backend, "key")

        assert await backend.get_many("key") == [None]
        assert await keys_of(backend) == []
        assert await backend.delete("key") == 0
        assert await backend.add("key", "new")

    @every_write
    @pytest.mark.parametrize("ex", [0, -0.5])
    async def test_ex_must_be_positive(
        self, backend: CacheBackend, write: Write, ex: float
    ) -> None:
        with pytest.raises(ValueError, match="positive"):
            await write(backend, "key", "1", ex)
        assert await backend.get("key") is None

    @every_write
    async def test_default_ttl(self, backend: CacheBackend, write: Write) -> None:
        """Without `ex` a value lives for the backend's `ttl`."""
        backend.ttl = SOON
        await backend.set("longer", "value", ex=MINUTE)

        await write(backend, "key", "1", None)

        await until_gone(backend, "key")
        assert await backend.get("longer") == "value"

    async def test_set_resets_ttl(self, backend: CacheBackend) -> None:
        await backend.set("longer", "old", ex=SOON)
        await backend.set("longer", "new")
        await backend.set("shorter", "old")
        await backend.set("shorter", "new", ex=SOON)

        await until_gone(backend, "shorter")
        await asyncio.sleep(2 * SOON)

        assert await backend.get("longer") == "new"

    async def test_add_changes_neither_value_nor_ttl_of_what_is_there(
        self, backend: CacheBackend
    ) -> None:
        assert await backend.add("key", "")
        assert not await backend.add("key", "second", ex=SOON)

        await asyncio.sleep(2 * SOON)

        assert await backend.get("key") == ""

    async def test_one_of_concurrent_adds_wins(self, backend: CacheBackend) -> None:
        won = await asyncio.gather(*(backend.add("key", str(n)) for n in range(50)))

        assert won.count(True) == 1
        assert await backend.get("key") == str(won.index(True))

    async def test_delete_counts_each_key_once(self, backend: CacheBackend) -> None:
        await set_all(backend, {"a": "1", "b": "", "c": b"3"})

        assert await backend.delete("a", "b", "a", "unknown") == 2

        assert await keys_of(backend) == ["c"]

    @pytest.mark.parametrize("pattern", PATTERNS)
    async def test_patterns(self, backend: CacheBackend, pattern: str) -> None:
        """`scan` and `delete_matching` take glob patterns."""
        await set_all(backend, STORED)
        matching = PATTERNS[pattern]

        assert await keys_of(backend, pattern) == sorted(matching)
        assert await backend.delete_matching(pattern) == len(matching)
        assert await keys_of(backend) == sorted(STORED - matching)

    async def test_one_call_takes_thousands_of_keys_and_a_scan_yields_each_once(
        self, backend: CacheBackend
    ) -> None:
        """Also if it is deleted on the way."""
        keys = [f"key{number}" for number in range(3000)]
        await set_all(backend, dict(zip(keys, keys, strict=True)))
        assert await backend.get_many(*keys) == keys

        seen = []
        async for key in backend.scan():
            seen.append(key)
            if len(seen) % 50 == 0:
                await backend.delete(*seen[-50:])

        assert sorted(seen) == sorted(keys)
        await set_all(backend, keys)
        assert await backend.delete(*keys) == len(keys)

    async def test_namespaces_are_separate(
        self, backend: CacheBackend, neighbour: CacheBackend
    ) -> None:
        await neighbour.set("key", "theirs")
        await neighbour.acquire_lease("leased", "token", MINUTE)
        assert await backend.get("key") is None
        assert await keys_of(backend) == []
        assert await backend.acquire_lease("leased", "other", MINUTE)

        await backend.set("key", "ours")
        await backend.delete("key", "leased")
        await backend.delete_matching("*")
        await backend.flush()

        assert await neighbour.get("key") == "theirs"
        assert await keys_of(neighbour) == ["key"]
        assert await neighbour.set_if_leased("leased", "token", "value")

    async def test_lease_is_exclusive(self, backend: CacheBackend) -> None:
        """Of many that want a lease at once one gets it; other keys are not affected."""
        won = await asyncio.gather(
            *(backend.acquire_lease("key", str(n), MINUTE) for n in range(50))
        )

        assert won.count(True) == 1
        assert await backend.acquire_lease("other", "theirs", MINUTE)
        assert await backend.set_if_leased("key", str(won.index(True)), "value")

    async def test_expired_lease_is_lost(self, backend: CacheBackend) -> None:
        """It goes to the next caller, and its old token is worth nothing."""
        await backend.acquire_lease("unclaimed", "mine", SOON)
        await backend.acquire_lease("key", "mine", SOON)

        await until(lambda: backend.acquire_lease("key", "theirs", MINUTE))

        for key in ("key", "unclaimed"):
            assert not await backend.renew_lease(key, "mine", MINUTE)
            assert not await backend.set_if_leased(key, "mine", "value")
        await backend.release_lease("key", "mine")
        assert await backend.get("key") is None
        assert await backend.set_if_leased("key", "theirs", "value")

    async def test_renewed_lease_lives_longer(self, backend: CacheBackend) -> None:
        async def is_renewed_in_time() -> bool:
            await backend.release_lease("key", "mine")
            await backend.acquire_lease("key", "mine", 4 * SOON)
            return await backend.renew_lease("key", "mine", MINUTE)

        assert not await backend.renew_lease("key", "mine", MINUTE)
        await until(is_renewed_in_time)
        await asyncio.sleep(5 * SOON)

        assert not await backend.renew_lease("key", "theirs", MINUTE)
        assert not await backend.acquire_lease("key", "theirs", MINUTE)
        assert await backend.set_if_leased("key", "mine", "value")

    async def test_its_holder_ends_a_lease_by_release_or_a_value(
        self, backend: CacheBackend
    ) -> None:
        await backend.acquire_lease("key", "another", MINUTE)
        await backend.release_lease("key", "theirs")
        assert not await backend.acquire_lease("key", "mine", MINUTE)
        await backend.release_lease("key", "another")
        assert await backend.acquire_lease("key", "mine", MINUTE)
        assert not await backend.set_if_leased("key", "theirs", "other")

        assert await backend.set_if_leased("key", "mine", "value")

        assert not await backend.set_if_leased("key", "mine", "again")
        assert await backend.get("key") == "value"
        assert await backend.acquire_lease("key", "theirs", MINUTE)

    @pytest.mark.parametrize("had_value", [True, False])
    @pytest.mark.parametrize("delete", DELETIONS.values(), ids=DELETIONS)
    async def test_deletion_ends_the_lease(
        self,
        backend: CacheBackend,
        delete: Callable[[CacheBackend], Awaitable[int | None]],
        *,
        had_value: bool,
    ) -> None:
        """After a deletion of any kind no value computed before it is stored."""
        if had_value:
            await backend.set("key", "old")
        await backend.acquire_lease("key", "mine", MINUTE)

        assert await delete(backend) in {int(had_value), None}

        assert not await backend.renew_lease("key", "mine", MINUTE)
        assert not await backend.set_if_leased("key", "mine", "stale")
        assert await backend.get("key") is None
        assert await backend.acquire_lease("key", "theirs", MINUTE)

    async def test_other_operations_leave_the_lease(self, backend: CacheBackend) -> None:
        """Deletions of other keys, and values that somebody sets."""
        await backend.acquire_lease("key", "mine", MINUTE)
        await backend.set("key", "1")
        await backend.add("key", "2")
        await backend.set("key2", "value")

        await backend.delete("key2", "lock:key", "lease:key")
        await backend.delete_matching("key?")
        await backend.delete_matching("ke")

        assert await backend.set_if_leased("key", "mine", "value")
        assert await backend.get("key") == "value"

    async def test_info_is_json_and_counts_values_but_no_lease(self, backend: CacheBackend) -> None:
        await backend.ping()
        before = await backend.info()
        await set_all(backend, {"a": "1", "b": b"2"})
        await backend.acquire_lease("leased", "mine", MINUTE)

        after = await backend.info()

        assert json.loads(json.dumps(after)) == after
        assert after["entries"] == before["entries"] + 2
        assert await backend.get("leased") is None
        assert await keys_of(backend) == ["a", "b"]
        assert await backend.add("leased", "value")

    async def test_it_can_be_closed_twice(self, backend: CacheBackend) -> None:
        async with backend as entered:
            assert entered is backend
            await entered.set("key", "value")

    async def test_a_cancelled_caller_disturbs_no_other(self, backend: CacheBackend) -> None:
        for _ in range(20):
            tasks = [asyncio.create_task(backend.set("key", str(n))) for n in range(10)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks[1::2])
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks[::2])

        await backend.set("key", "last")
        assert await backend.get("key") == "last"

    async def test_concurrent_callers_get_what_each_would_alone(
        self, backend: CacheBackend
    ) -> None:
        async def work(number: int) -> None:
            key = f"work:{number}"
            await backend.set(key, str(number))
            assert await backend.get(key) == str(number)
            assert await backend.acquire_lease(key, "token", MINUTE)
            assert await backend.set_if_leased(key, "token", b"done")
            assert await backend.get_many(key, "unknown") == [b"done", None]
            assert await backend.delete(key) == 1
            assert await backend.add(key, "added")

        await asyncio.gather(*(work(number) for number in range(50)))

        assert await backend.delete_matching("work:*") == 50
