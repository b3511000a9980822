"""What every cache backend must do; each backend's tests run all of it.

A subclass provides two fixtures, both empty when a test begins: `backend`, and `neighbour`, a
backend that shares with it whatever such backends can share, but not the namespace.

Times are real, for a server has a clock of its own. A test waits until something is gone, for
seconds if it must, and never expects it to be gone by a certain moment.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from src.cache.backends.base import CacheBackend, CacheError, Value

SOON = 0.05
PATIENCE_SECONDS = 60
MINUTE = 60.0

VALUES: dict[str, Value] = {
    "text": "value",
    "empty text": "",
    "zero": "0",
    "none": "None",
    "unicode": "Zürich 東京 🦊",
    "text with NUL": "a\0b\0",
    "line ends": "a\r\nb\n",
    "bytes": b"value",
    "empty bytes": b"",
    "bytes with NUL": b"\0a\0",
    "no UTF-8": b"\xff\xfe\x80",
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
    "**": STORED,
    "": set(),
    "a": {"a"},
    "A": set(),
    "a?": {"ab"},
    "%": {"%"},
    "_": {"_"},
    "*_*": {"_", "x_y"},
    "user:*": {"user:1", "user:2", "user:10", "user:1:name"},
    "user:?": {"user:1", "user:2"},
    "user?1": {"user:1", "user\n1"},
    "user*1": {"user:1", "user\n1"},
    "*:name": {"user:1:name"},
    "*1*a*": {"user:1:name"},
    "user:[12]": {"user:1", "user:2"},
    "user:[0-1]": {"user:1"},
    "user:[1-0]": {"user:1"},
    "user:[^1]": {"user:2"},
    "user:[^0-1]": {"user:2"},
    "user:[!1]": {"user:1"},
    "a\\*c": {"a*c"},
    "a\\?c": {"a?c"},
    "a\\[c": {"a[c"},
    "a\\\\c": {"a\\c"},
    "\\a\\b": {"ab"},
    "a[*?]c": {"a*c", "a?c"},
    "a[[]c": {"a[c"},
    "a[\\]]c": {"a]c"},
    "a[\\^]c": {"a^c"},
    "a[b^]c": {"abc", "a^c"},
    "a[\\-b]c": {"a-c", "abc"},
    "a[]c": set(),
    "a[bc": {"ab"},
}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - there is no event for time that passes
            await asyncio.sleep(SOON / 5)


async def until_gone(backend: CacheBackend, key: str) -> None:
    async def gone() -> bool:
        return await backend.get(key) is None

    await until(gone)


async def keys_of(backend: CacheBackend, pattern: str = "*") -> list[str]:
    return sorted([key async for key in backend.scan(pattern)])


class BackendContract:
    async def test_unknown_key(self, backend: CacheBackend) -> None:
        """A key that was never set has no value."""
        assert await backend.get("unknown") is None

    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
    async def test_value_comes_back(self, backend: CacheBackend, value: Value) -> None:
        """A value comes back equal and of the same type, whichever way it was set."""
        await backend.set("set", value)
        await backend.set_many({"set_many": value})
        await backend.add("add", value)
        await backend.lease("fulfil", "token", MINUTE)
        await backend.fulfil("fulfil", "token", value)

        found = await backend.get_many("set", "set_many", "add", "fulfil")

        assert found == [value] * 4
        assert {type(one) for one in found} == {type(value)}
        assert await backend.get("set") == value

    @pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:20]))
    async def test_any_text_is_a_key(self, backend: CacheBackend, key: str) -> None:
        """Any text may be a key, and is taken for no more than that."""
        await backend.set_many({"other": "value", key + "x": "value"})

        await backend.set(key, "value")

        assert await backend.get(key) == "value"
        assert await backend.get_many(key) == ["value"]
        assert await keys_of(backend) == sorted([key, "other", key + "x"])
        assert await backend.increment(key + "n") == 1
        assert await backend.lease(key, "token", MINUTE)
        assert await backend.fulfil(key, "token", "new")
        assert await backend.delete(key) == 1
        assert await backend.get_many(key, "other", key + "x") == [None, "value", "value"]

    async def test_text_that_is_no_unicode(self, backend: CacheBackend) -> None:
        """A lone surrogate has no UTF-8 form, so neither a value nor a key may hold it."""
        with pytest.raises(ValueError, match="surrogates"):
            await backend.set("key", "\ud800")
        with pytest.raises(ValueError, match="surrogates"):
            await backend.set("\ud800", "value")
        assert await keys_of(backend) == []

    async def test_set_replaces_value_and_type(self, backend: CacheBackend) -> None:
        """A later value replaces an earlier one, also one of the other type."""
        await backend.set("key", "text")
        await backend.set("key", b"bytes")
        assert await backend.get("key") == b"bytes"

        await backend.set("key", "text again")
        assert await backend.get("key") == "text again"

    async def test_get_many(self, backend: CacheBackend) -> None:
        """Values come in the order of the keys, as often as asked for, None for each miss."""
        await backend.set_many({"a": "1", "b": b"2", "empty": ""})

        found = await backend.get_many("b", "none", "a", "b", "empty")

        assert found == [b"2", None, "1", b"2", ""]

    async def test_get_very_many(self, backend: CacheBackend) -> None:
        """There is no limit on how many keys one call may name."""
        values: dict[str, Value] = {f"key{number}": str(number) for number in range(3000)}

        await backend.set_many(values)

        assert await backend.get_many(*values) == list(values.values())
        assert await backend.delete(*values) == 3000

    async def test_nothing_asked(self, backend: CacheBackend) -> None:
        """A call that names no key does nothing."""
        await backend.set("key", "value")

        await backend.set_many({})

        assert await backend.get_many() == []
        assert await backend.delete() == 0
        assert await keys_of(backend) == ["key"]

    @pytest.mark.parametrize("way", ["set", "set_many", "add", "increment", "fulfil"])
    async def test_value_expires(self, backend: CacheBackend, way: str) -> None:
        """A value set with `ex` is there at first, also for a fraction of a second, and gone later."""
        await write(backend, way, ex=MINUTE + 0.5)
        assert await backend.get_many("key") == ["1"]

        await backend.delete("key")
        await write(backend, way, ex=SOON)
        await until_gone(backend, "key")

        assert await backend.get_many("key") == [None]
        assert await keys_of(backend) == []
        assert await backend.delete("key") == 0

    @pytest.mark.parametrize("way", ["set", "set_many", "add", "increment", "fulfil"])
    @pytest.mark.parametrize("ex", [0, -1, -0.5])
    async def test_ex_must_be_positive(self, backend: CacheBackend, way: str, ex: float) -> None:
        """An `ex` that is not positive is an error, and sets nothing."""
        with pytest.raises(ValueError, match="positive"):
            await write(backend, way, ex=ex)
        assert await backend.get("key") is None

    @pytest.mark.parametrize("way", ["set", "set_many", "add", "increment", "fulfil"])
    async def test_default_ttl(self, backend: CacheBackend, way: str) -> None:
        """Without `ex` a value lives for the backend's `ttl`; `ex` goes before it."""
        backend.ttl = SOON
        await backend.set("kept", "value", ex=MINUTE)

        await write(backend, way)

        await until_gone(backend, "key")
        assert await backend.get("kept") == "value"

    async def test_set_resets_ttl(self, backend: CacheBackend) -> None:
        """A value that replaces another lives for its own time, not for the other's rest."""
        await backend.set("longer", "old", ex=SOON)
        await backend.set("longer", "new")
        await backend.set("shorter", "old")
        await backend.set("shorter", "new", ex=SOON)

        await until_gone(backend, "shorter")
        await asyncio.sleep(2 * SOON)

        assert await backend.get("longer") == "new"

    async def test_add(self, backend: CacheBackend) -> None:
        """`add` sets a value where none is, and leaves one that is there, even an empty one."""
        assert await backend.add("key", "")
        assert not await backend.add("key", "second")
        assert await backend.get("key") == ""

    async def test_add_after_expiry(self, backend: CacheBackend) -> None:
        """A value that expired is in nobody's way."""
        await backend.set("key", "old", ex=SOON)
        await until_gone(backend, "key")

        assert await backend.add("key", "new")
        assert await backend.get("key") == "new"

    async def test_failed_add_leaves_ttl(self, backend: CacheBackend) -> None:
        """`add` on a value that is there does not change how long that lives."""
        await backend.set("key", "old")
        assert not await backend.add("key", "new", ex=SOON)

        await asyncio.sleep(2 * SOON)

        assert await backend.get("key") == "old"

    async def test_one_add_wins(self, backend: CacheBackend) -> None:
        """Of many that add at once exactly one succeeds, and its value is kept."""
        won = await asyncio.gather(*(backend.add("key", str(n)) for n in range(50)))

        assert won.count(True) == 1
        assert await backend.get("key") == str(won.index(True))

    async def test_increment(self, backend: CacheBackend) -> None:
        """A number begins at 0, goes both ways, and is read as its digits."""
        assert await backend.increment("n") == 1
        assert await backend.increment("n", by=41) == 42
        assert await backend.get("n") == "42"
        assert await backend.increment("n", by=-50) == -8
        assert await backend.increment("n", by=0) == -8
        assert await backend.get("n") == "-8"

    async def test_increment_what_was_set(self, backend: CacheBackend) -> None:
        """Digits that were set are a number too."""
        await backend.set("n", "41")
        assert await backend.increment("n") == 42

    async def test_increments_at_once(self, backend: CacheBackend) -> None:
        """No increment is lost, and no two see the same sum."""
        sums = await asyncio.gather(*(backend.increment("n") for _ in range(100)))
        assert sorted(sums) == list(range(1, 101))

    @pytest.mark.parametrize("value", ["", "one", "1.5", " 1", "+1", "01", "1_0", "٣", b"\xff"])
    async def test_increment_no_number(self, backend: CacheBackend, value: Value) -> None:
        """What is not a decimal integer cannot be added to, and stays."""
        await backend.set("n", value)

        with pytest.raises(CacheError):
            await backend.increment("n")

        assert await backend.get("n") == value

    async def test_increment_overflow(self, backend: CacheBackend) -> None:
        """A number has 64 bits; what would go beyond is refused, and changes nothing."""
        assert await backend.increment("n", by=2**63 - 1) == 2**63 - 1
        assert await backend.increment("m", by=-(2**63)) == -(2**63)

        for key, by in [("n", 1), ("m", -1), ("new", 2**63)]:
            with pytest.raises(CacheError):
                await backend.increment(key, by=by)

        assert await backend.get_many("n", "m", "new") == [str(2**63 - 1), str(-(2**63)), None]

    async def test_increment_does_not_prolong(self, backend: CacheBackend) -> None:
        """The first `ex` counts: a number begins anew in time, however often it grows."""
        await backend.increment("n", by=1000, ex=4 * SOON)

        async def begins_anew() -> bool:
            return await backend.increment("n", ex=MINUTE) == 1

        await until(begins_anew)

    async def test_increment_keeps_ttl(self, backend: CacheBackend) -> None:
        """An increment without `ex` leaves the time to live alone as well."""

        async def incremented_in_time() -> bool:
            await backend.delete("n")
            await backend.increment("n", ex=4 * SOON)
            return await backend.increment("n") == 2

        await until(incremented_in_time)
        await until_gone(backend, "n")

    async def test_increment_sets_no_ttl_later(self, backend: CacheBackend) -> None:
        """A number that lives for ever is not given an end by a later `ex`."""
        await backend.increment("n")
        await backend.increment("n", ex=SOON)

        await asyncio.sleep(2 * SOON)

        assert await backend.get("n") == "2"

    async def test_delete(self, backend: CacheBackend) -> None:
        """`delete` removes all keys that it names, and counts those that had a value, once."""
        await backend.set_many({"a": "1", "b": "", "c": b"3"})

        assert await backend.delete("a", "b", "a", "unknown") == 2

        assert await keys_of(backend) == ["c"]
        assert await backend.delete("a") == 0

    @pytest.mark.parametrize("pattern", PATTERNS)
    async def test_patterns(self, backend: CacheBackend, pattern: str) -> None:
        """`scan` and `delete_matching` take glob patterns."""
        await backend.set_many(dict.fromkeys(STORED, "value"))
        matching = PATTERNS[pattern]

        assert await keys_of(backend, pattern) == sorted(matching)
        assert await backend.delete_matching(pattern) == len(matching)
        assert await keys_of(backend) == sorted(STORED - matching)

    async def test_scan_many(self, backend: CacheBackend) -> None:
        """Each of many keys is yielded once, also if it is deleted on the way."""
        values: dict[str, Value] = {f"key{number}": "value" for number in range(2500)}
        await backend.set_many(values)

        seen = []
        async for key in backend.scan():
            seen.append(key)
            if len(seen) % 50 == 0:
                await backend.delete(*seen[-50:])

        assert sorted(seen) == sorted(values)
        assert await keys_of(backend) == []

    async def test_scan_abandoned(self, backend: CacheBackend) -> None:
        """A scan may be left before its end."""
        await backend.set_many({f"key{number}": "value" for number in range(100)})
        scan = backend.scan()

        assert await anext(scan) in {f"key{number}" for number in range(100)}
        await backend.flush()

        assert await keys_of(backend) == []

    async def test_flush(self, backend: CacheBackend) -> None:
        """`flush` leaves nothing, and the backend goes on."""
        await backend.set_many({"a": "1", "b": "2"})

        await backend.flush()

        assert await keys_of(backend) == []
        assert await backend.get_many("a", "b") == [None, None]
        await backend.set("a", "again")
        assert await backend.get("a") == "again"

    async def test_namespaces(self, backend: CacheBackend, neighbour: CacheBackend) -> None:
        """Whatever is done in one namespace, the other does not notice."""
        await neighbour.set("key", "theirs")
        await neighbour.lease("leased", "token", MINUTE)
        assert await backend.get("key") is None
        assert await keys_of(backend) == []
        assert await backend.lease("leased", "other", MINUTE)

        await backend.set("key", "ours")
        await backend.delete("key", "leased")
        await backend.delete_matching("*")
        await backend.flush()

        assert await neighbour.get("key") == "theirs"
        assert await keys_of(neighbour) == ["key"]
        assert await neighbour.fulfil("leased", "token", "value")

    async def test_lease_is_exclusive(self, backend: CacheBackend) -> None:
        """One caller holds a key's lease, and the leases on other keys are not affected."""
        assert await backend.lease("key", "mine", MINUTE)
        assert not await backend.lease("key", "theirs", MINUTE)
        assert await backend.lease("other", "theirs", MINUTE)

    async def test_one_lease_wins(self, backend: CacheBackend) -> None:
        """Of many that want a lease at once exactly one gets it."""
        won = await asyncio.gather(*(backend.lease("key", str(n), MINUTE) for n in range(50)))

        assert won.count(True) == 1
        assert await backend.fulfil("key", str(won.index(True)), "value")

    async def test_lease_expires(self, backend: CacheBackend) -> None:
        """A lease that expired goes to the next caller, and its old token is worth nothing."""
        await backend.lease("key", "mine", SOON)

        async def taken_over() -> bool:
            return await backend.lease("key", "theirs", MINUTE)

        await until(taken_over)

        assert not await backend.renew("key", "mine", MINUTE)
        assert not await backend.fulfil("key", "mine", "value")
        await backend.release("key", "mine")
        assert await backend.get("key") is None
        assert await backend.fulfil("key", "theirs", "value")

    async def test_expired_lease_is_not_held(self, backend: CacheBackend) -> None:
        """A lease that expired cannot be used, even if nobody took it since."""
        await backend.lease("key", "mine", SOON)
        await asyncio.sleep(3 * SOON)

        assert not await backend.fulfil("key", "mine", "value")
        assert not await backend.renew("key", "mine", MINUTE)

    async def test_renew(self, backend: CacheBackend) -> None:
        """A renewed lease outlives the time that it was taken for."""

        async def renewed_in_time() -> bool:
            await backend.release("key", "mine")
            await backend.lease("key", "mine", 4 * SOON)
            return await backend.renew("key", "mine", MINUTE)

        await until(renewed_in_time)
        await asyncio.sleep(5 * SOON)

        assert not await backend.lease("key", "theirs", MINUTE)
        assert await backend.fulfil("key", "mine", "value")

    async def test_renew_what_is_not_held(self, backend: CacheBackend) -> None:
        """Neither another's lease can be renewed nor one that does not exist."""
        assert not await backend.renew("key", "mine", MINUTE)
        await backend.lease("key", "theirs", MINUTE)
        assert not await backend.renew("key", "mine", MINUTE)

    async def test_fulfil(self, backend: CacheBackend) -> None:
        """`fulfil` sets the value and ends the lease, so it works once."""
        await backend.lease("key", "mine", MINUTE)

        assert await backend.fulfil("key", "mine", "value")

        assert await backend.get("key") == "value"
        assert not await backend.fulfil("key", "mine", "again")
        assert await backend.lease("key", "theirs", MINUTE)

    async def test_fulfil_without_lease(self, backend: CacheBackend) -> None:
        """Without the lease `fulfil` sets nothing, and leaves what is there."""
        assert not await backend.fulfil("key", "mine", "value")
        assert await backend.get("key") is None

        await backend.set("key", "old")
        await backend.lease("key", "theirs", MINUTE)
        assert not await backend.fulfil("key", "mine", "value")
        assert await backend.get("key") == "old"

    @pytest.mark.parametrize("had_value", [True, False])
    @pytest.mark.parametrize("way", ["delete", "exact", "pattern", "all", "flush"])
    async def test_deletion_ends_lease(
        self, backend: CacheBackend, way: str, *, had_value: bool
    ) -> None:
        """After a deletion of any kind no value computed before it is stored."""
        if had_value:
            await backend.set("key", "old")
        await backend.lease("key", "mine", MINUTE)

        deletions: dict[str, Callable[[], Awaitable[int | None]]] = {
            "delete": lambda: backend.delete("key"),
            "exact": lambda: backend.delete_matching("key"),
            "pattern": lambda: backend.delete_matching("k?[x-z]"),
            "all": lambda: backend.delete_matching("*"),
            "flush": backend.flush,
        }
        assert await deletions[way]() in {int(had_value), None}

        assert not await backend.renew("key", "mine", MINUTE)
        assert not await backend.fulfil("key", "mine", "stale")
        assert await backend.get("key") is None
        assert await backend.lease("key", "theirs", MINUTE)

    async def test_other_deletions_leave_lease(self, backend: CacheBackend) -> None:
        """A deletion of other keys does not end the lease."""
        await backend.lease("key", "mine", MINUTE)
        await backend.set("key2", "value")

        await backend.delete("key2", "lock:key", "lease:key")
        await backend.delete_matching("key?")
        await backend.delete_matching("ke")

        assert await backend.fulfil("key", "mine", "value")

    async def test_writes_leave_lease(self, backend: CacheBackend) -> None:
        """A value that somebody sets does not end the lease."""
        await backend.lease("key", "mine", MINUTE)

        await backend.set("key", "1")
        await backend.set_many({"key": "2"})
        await backend.add("key", "3")
        await backend.increment("key")

        assert await backend.fulfil("key", "mine", "value")
        assert await backend.get("key") == "value"

    async def test_release(self, backend: CacheBackend) -> None:
        """A lease ends when its own token releases it, and not for another's."""
        await backend.lease("key", "mine", MINUTE)

        await backend.release("key", "theirs")
        assert not await backend.lease("key", "theirs", MINUTE)

        await backend.release("key", "mine")
        assert await backend.lease("key", "theirs", MINUTE)
        await backend.release("unknown", "mine")

    async def test_lease_is_no_value(self, backend: CacheBackend) -> None:
        """A lease is to be seen nowhere among the values, and is in no value's way."""
        before = (await backend.info())["entries"]

        await backend.lease("key", "mine", MINUTE)

        assert (await backend.info())["entries"] == before
        assert await backend.get("key") is None
        assert await keys_of(backend) == []
        assert await backend.delete("other") == 0
        assert await backend.add("key", "value")

    async def test_ping(self, backend: CacheBackend) -> None:
        """A backend that works says so."""
        await backend.ping()
        assert backend.available

    async def test_info(self, backend: CacheBackend) -> None:
        """The state is told in JSON's types, and counts the entries."""
        before = await backend.info()
        await backend.set_many({"a": "1", "b": b"2"})

        after = await backend.info()

        assert json.loads(json.dumps(after)) == after
        assert after["entries"] == before["entries"] + 2

    async def test_context_manager(self, backend: CacheBackend) -> None:
        """A backend is its own context manager, and it does no harm to close it again."""
        async with backend as entered:
            assert entered is backend
            await entered.set("key", "value")
            assert await entered.get("key") == "value"

    async def test_close_unused(self, backend: CacheBackend) -> None:
        """A backend that was never used can be closed."""
        await backend.aclose()

    async def test_cancelled_caller(self, backend: CacheBackend) -> None:
        """A caller that gives up harms neither itself nor the others."""
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

    async def test_all_at_once(self, backend: CacheBackend) -> None:
        """Many callers that do everything at once get what each of them alone would."""

        async def work(number: int) -> None:
            key = f"work:{number}"
            await backend.set(key, str(number))
            assert await backend.get(key) == str(number)
            await backend.increment("sum", by=number)
            assert await backend.lease(key, "token", MINUTE)
            assert await backend.fulfil(key, "token", b"done")
            assert await backend.get_many(key, "unknown") == [b"done", None]
            assert await backend.delete(key) == 1
            assert await backend.add(key, "added")

        await asyncio.gather(*(work(number) for number in range(50)))

        assert await backend.get("sum") == str(sum(range(50)))
        assert await backend.delete_matching("work:*") == 50


async def write(backend: CacheBackend, way: str, ex: float | None = None) -> None:
    """Give the key "key" the value "1" in one of the ways there are."""
    match way:
        case "set":
            await backend.set("key", "1", ex=ex)
        case "set_many":
            await backend.set_many({"key": "1"}, ex=ex)
        case "add":
            await backend.add("key", "1", ex=ex)
        case "increment":
            await backend.increment("key", ex=ex)
        case "fulfil":
            await backend.lease("key", "token", MINUTE)
            await backend.fulfil("key", "token", "1", ex=ex)
