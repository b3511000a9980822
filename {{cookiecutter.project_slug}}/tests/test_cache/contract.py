"""The contract of all cache backends; the tests of each backend run it.

A subclass provides two fixtures, both empty at first: `backend`, and `other_namespace`, a backend
in a different namespace of the same server (or in a different file or memory).

Tests use the real time, because a server has its own clock. They wait until a value has expired, and
never assume that it has expired at a certain time.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

import pytest

from src.cache.backends.base import CacheBackend, Value

SHORT_SECONDS = 0.05
TIMEOUT_SECONDS = 60
LONG_SECONDS = 60.0

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
    """Wait until the function, async or not, returns True."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            found = condition()
            if (await found) if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(SHORT_SECONDS / 10)


async def until_expired(backend: CacheBackend, key: str) -> None:
    async def is_expired() -> bool:
        return await backend.get(key) is None

    await until(is_expired)


async def keys_of(backend: CacheBackend, pattern: str = "*") -> list[str]:
    return sorted([key async for key in backend.scan(pattern)])


async def set_all(
    backend: CacheBackend, values: Mapping[str, Value] | Iterable[str], ex: float | None = None
) -> None:
    values = values if isinstance(values, Mapping) else dict.fromkeys(values, "value")
    await asyncio.gather(*(backend.set(key, value, ex) for key, value in values.items()))


Write = Callable[[CacheBackend, str, Value, float | None], Awaitable[object]]


async def set_with_lease(backend: CacheBackend, key: str, value: Value, ex: float | None) -> None:
    await backend.acquire_lease(key, "token", LONG_SECONDS)
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
    async def test_value_is_returned_with_its_type(
        self, backend: CacheBackend, write: Write, value: Value
    ) -> None:
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
    async def test_any_text_can_be_a_key(self, backend: CacheBackend, key: str) -> None:
        await set_all(backend, ["other", key + "x"])

        await backend.set(key, "value")

        assert await backend.get_many(key) == [await backend.get(key)] == ["value"]
        assert await keys_of(backend) == sorted([key, "other", key + "x"])
        assert await backend.acquire_lease(key, "token", LONG_SECONDS)
        assert await backend.set_if_leased(key, "token", "new")
        assert await backend.delete(key) == 1
        assert await backend.get_many(key, "other", key + "x") == [None, "value", "value"]

    @pytest.mark.parametrize(("key", "value"), [("key", "\ud800"), ("\ud800", "value")])
    async def test_lone_surrogates_are_refused(
        self, backend: CacheBackend, key: str, value: str
    ) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            await backend.set(key, value)
        assert await keys_of(backend) == []

    async def test_get_many_returns_values_in_the_order_of_the_keys(
        self, backend: CacheBackend
    ) -> None:
        await set_all(backend, {"a": "1", "b": b"2", "empty": ""})

        found = await backend.get_many("b", "none", "a", "b", "empty")

        assert found == [b"2", None, "1", b"2", ""]
        assert (await backend.get_many(), await backend.delete()) == ([], 0)

    @every_write
    async def test_value_expires(self, backend: CacheBackend, write: Write) -> None:
        """A TTL may be a fraction of a second."""
        await write(backend, "key", "1", LONG_SECONDS + 0.5)
        assert await backend.get_many("key") == ["1"]

        await backend.delete("key")
        await write(backend, "key", "1", SHORT_SECONDS)
        await until_expired(backend, "key")

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
        backend.ttl = SHORT_SECONDS
        await backend.set("longer", "value", ex=LONG_SECONDS)

        await write(backend, "key", "1", None)

        await until_expired(backend, "key")
        assert await backend.get("longer") == "value"

    async def test_set_resets_ttl(self, backend: CacheBackend) -> None:
        await backend.set("longer", "old", ex=SHORT_SECONDS)
        await backend.set("longer", "new")
        await backend.set("shorter", "old")
        await backend.set("shorter", "new", ex=SHORT_SECONDS)

        await until_expired(backend, "shorter")
        await asyncio.sleep(2 * SHORT_SECONDS)

        assert await backend.get("longer") == "new"

    async def test_add_does_not_change_an_existing_value_or_its_ttl(
        self, backend: CacheBackend
    ) -> None:
        assert await backend.add("key", "")
        assert not await backend.add("key", "second", ex=SHORT_SECONDS)

        await asyncio.sleep(2 * SHORT_SECONDS)

        assert await backend.get("key") == ""

    async def test_one_of_concurrent_adds_succeeds(self, backend: CacheBackend) -> None:
        added = await asyncio.gather(*(backend.add("key", str(n)) for n in range(50)))

        assert added.count(True) == 1
        assert await backend.get("key") == str(added.index(True))

    async def test_delete_counts_each_key_once(self, backend: CacheBackend) -> None:
        await set_all(backend, {"a": "1", "b": "", "c": b"3"})

        assert await backend.delete("a", "b", "a", "unknown") == 2

        assert await keys_of(backend) == ["c"]

    @pytest.mark.parametrize("pattern", PATTERNS)
    async def test_scan_and_delete_matching_take_glob_patterns(
        self, backend: CacheBackend, pattern: str
    ) -> None:
        await set_all(backend, STORED)
        matching = PATTERNS[pattern]

        assert await keys_of(backend, pattern) == sorted(matching)
        assert await backend.delete_matching(pattern) == len(matching)
        assert await keys_of(backend) == sorted(STORED - matching)

    async def test_thousands_of_keys(self, backend: CacheBackend) -> None:
        """A scan yields each key once, even if keys are deleted during the scan."""
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
        self, backend: CacheBackend, other_namespace: CacheBackend
    ) -> None:
        await other_namespace.set("key", "theirs")
        await other_namespace.acquire_lease("leased", "token", LONG_SECONDS)
        assert await backend.get("key") is None
        assert await keys_of(backend) == []
        assert await backend.acquire_lease("leased", "other", LONG_SECONDS)

        await backend.set("key", "ours")
        await backend.delete("key", "leased")
        await backend.delete_matching("*")
        await backend.flush()

        assert await other_namespace.get("key") == "theirs"
        assert await keys_of(other_namespace) == ["key"]
        assert await other_namespace.set_if_leased("leased", "token", "value")

    async def test_lease_is_exclusive(self, backend: CacheBackend) -> None:
        """One of many concurrent callers acquires it. Leases on other keys are not affected."""
        acquired = await asyncio.gather(
            *(backend.acquire_lease("key", str(n), LONG_SECONDS) for n in range(50))
        )

        assert acquired.count(True) == 1
        assert await backend.acquire_lease("other", "theirs", LONG_SECONDS)
        assert await backend.set_if_leased("key", str(acquired.index(True)), "value")

    async def test_expired_lease_can_be_acquired_again(self, backend: CacheBackend) -> None:
        """After that, the old token is not valid."""
        await backend.acquire_lease("unclaimed", "mine", SHORT_SECONDS)
        await backend.acquire_lease("key", "mine", SHORT_SECONDS)

        await until(lambda: backend.acquire_lease("key", "theirs", LONG_SECONDS))

        for key in ("key", "unclaimed"):
            assert not await backend.renew_lease(key, "mine", LONG_SECONDS)
            assert not await backend.set_if_leased(key, "mine", "value")
        await backend.release_lease("key", "mine")
        assert await backend.get("key") is None
        assert await backend.set_if_leased("key", "theirs", "value")

    async def test_renewed_lease_expires_later(self, backend: CacheBackend) -> None:
        async def is_renewed_in_time() -> bool:
            await backend.release_lease("key", "mine")
            await backend.acquire_lease("key", "mine", 4 * SHORT_SECONDS)
            return await backend.renew_lease("key", "mine", LONG_SECONDS)

        assert not await backend.renew_lease("key", "mine", LONG_SECONDS)
        await until(is_renewed_in_time)
        await asyncio.sleep(5 * SHORT_SECONDS)

        assert not await backend.renew_lease("key", "theirs", LONG_SECONDS)
        assert not await backend.acquire_lease("key", "theirs", LONG_SECONDS)
        assert await backend.set_if_leased("key", "mine", "value")

    async def test_only_the_token_of_a_lease_can_release_it_or_set_the_value(
        self, backend: CacheBackend
    ) -> None:
        await backend.acquire_lease("key", "another", LONG_SECONDS)
        await backend.release_lease("key", "theirs")
        assert not await backend.acquire_lease("key", "mine", LONG_SECONDS)
        await backend.release_lease("key", "another")
        assert await backend.acquire_lease("key", "mine", LONG_SECONDS)
        assert not await backend.set_if_leased("key", "theirs", "other")

        assert await backend.set_if_leased("key", "mine", "value")

        assert not await backend.set_if_leased("key", "mine", "again")
        assert await backend.get("key") == "value"
        assert await backend.acquire_lease("key", "theirs", LONG_SECONDS)

    @pytest.mark.parametrize("had_value", [True, False])
    @pytest.mark.parametrize("delete", DELETIONS.values(), ids=DELETIONS)
    async def test_deletion_ends_the_lease(
        self,
        backend: CacheBackend,
        delete: Callable[[CacheBackend], Awaitable[int | None]],
        *,
        had_value: bool,
    ) -> None:
        """A value that was computed before the deletion is not stored after it."""
        if had_value:
            await backend.set("key", "old")
        await backend.acquire_lease("key", "mine", LONG_SECONDS)

        assert await delete(backend) in {int(had_value), None}

        assert not await backend.renew_lease("key", "mine", LONG_SECONDS)
        assert not await backend.set_if_leased("key", "mine", "stale")
        assert await backend.get("key") is None
        assert await backend.acquire_lease("key", "theirs", LONG_SECONDS)

    async def test_other_operations_do_not_end_the_lease(self, backend: CacheBackend) -> None:
        """Deleting other keys or setting the value without the lease does not end it."""
        await backend.acquire_lease("key", "mine", LONG_SECONDS)
        await backend.set("key", "1")
        await backend.add("key", "2")
        await backend.set("key2", "value")

        await backend.delete("key2", "lock:key", "lease:key")
        await backend.delete_matching("key?")
        await backend.delete_matching("ke")

        assert await backend.set_if_leased("key", "mine", "value")
        assert await backend.get("key") == "value"

    async def test_info_is_json_and_counts_values_without_leases(
        self, backend: CacheBackend
    ) -> None:
        await backend.ping()
        before = await backend.info()
        await set_all(backend, {"a": "1", "b": b"2"})
        await backend.acquire_lease("leased", "mine", LONG_SECONDS)

        after = await backend.info()

        assert json.loads(json.dumps(after)) == after
        assert after["entries"] == before["entries"] + 2
        assert await backend.get("leased") is None
        assert await keys_of(backend) == ["a", "b"]
        assert await backend.add("leased", "value")

    async def test_backend_can_be_closed_twice(self, backend: CacheBackend) -> None:
        async with backend as entered:
            assert entered is backend
            await entered.set("key", "value")

    async def test_cancelled_call_does_not_affect_other_calls(self, backend: CacheBackend) -> None:
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

    async def test_concurrent_callers_do_not_affect_each_other(self, backend: CacheBackend) -> None:
        async def work(number: int) -> None:
            key = f"work:{number}"
            await backend.set(key, str(number))
            assert await backend.get(key) == str(number)
            assert await backend.acquire_lease(key, "token", LONG_SECONDS)
            assert await backend.set_if_leased(key, "token", b"done")
            assert await backend.get_many(key, "unknown") == [b"done", None]
            assert await backend.delete(key) == 1
            assert await backend.add(key, "added")

        await asyncio.gather(*(work(number) for number in range(50)))

        assert await backend.delete_matching("work:*") == 50
