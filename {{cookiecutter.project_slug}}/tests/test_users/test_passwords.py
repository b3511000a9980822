"""Which passwords are accepted, and how many argon2 hashes at the same time."""

import asyncio

import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr

from src.auth import passwords
from src.auth.passwords import Passwords, UnacceptablePasswordError, check
from src.domain.errors import OverloadedError

RELATED = ("ann.smith@example.com", "My Service")


@pytest.mark.parametrize(
    "password",
    [
        "lamp river cactus 7",
        "294817365028471",  # no rule for kinds of characters
        "$%&/()=?`*'#+~-.,;:",
        "пароль из трёх слов",
        "六つの単語でできた長い合言葉です",
        "x" * 5 + " lamp river cactus " + "y" * 104,  # 128 characters
        "thisisapassword of mine",
    ],
)
def test_long_passwords_are_accepted(password: str) -> None:
    check(SecretStr(password), *RELATED)


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("", "at least 15"),
        ("lamp river 777", "at least 15"),
        ("\u1100\u1161" * 14, "at least 15"),  # as many composed characters
        ("\ufdfa", "at least 15"),  # NFKC makes 18 characters of it
        ("lamp river cactus" + "x" * 112, "at most 128"),
        ("\ufdfa" * 15, "at most 128"),  # one of them is 18 characters
        ("correct horse battery staple", "easy to guess"),
        ("This Is A Password!", "easy to guess"),
        ("ThisIsAPassword2026", "easy to guess"),
        ("Ann.Smith@Example.com", "easy to guess"),
        ("1999annsmith20261231", "easy to guess"),
        ("My Service 2026-2027", "easy to guess"),
        ("passwordpassword", "repeats"),
        ("passwordpassword1", "repeats"),
        ("aaaaaaaaaaaaaaaa", "repeats"),
        ("abababababababab", "repeats"),
        ("abcdefghijklmnopq", "repeats"),
        ("123456789012345", "repeats"),
        ("qwertyuiopasdfghjk", "repeats"),
        ("1q2w3e4r5t6y7u8i", "repeats"),
    ],
)
def test_passwords_that_are_easy_to_guess_are_refused(password: str, reason: str) -> None:
    with pytest.raises(UnacceptablePasswordError, match=reason):
        check(SecretStr(password), *RELATED)


async def test_a_hash_verifies_its_password_only() -> None:
    hasher = Passwords()
    stored = await hasher.hash(SecretStr("lamp river cactus"))
    assert stored.startswith("$argon2id$v=19$m=")
    assert await hasher.verify(stored, SecretStr("lamp river cactus"))
    assert not await hasher.verify(stored, SecretStr("lamp river cactu"))
    assert not await hasher.verify(None, SecretStr("lamp river cactus"))
    assert not await hasher.verify("not a hash", SecretStr("lamp river cactus"))
    assert not hasher.needs_rehash(stored)


async def test_few_hashes_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MAX_WAITING", 10)
    running, most = 0, 0
    hash_one = PasswordHasher.hash

    def count(self: PasswordHasher, password: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return hash_one(self, password)
        finally:
            running -= 1

    monkeypatch.setattr(PasswordHasher, "hash", count)
    hasher = Passwords()
    jobs = [hasher.hash(SecretStr("lamp river cactus")) for _ in range(20)]
    results = await asyncio.gather(*jobs, return_exceptions=True)

    assert most == passwords.MAX_RUNNING
    refused = [each for each in results if isinstance(each, OverloadedError)]
    assert len(refused) == 20 - passwords.MAX_RUNNING - 10
    assert await hasher.hash(SecretStr("lamp river cactus"))  # it recovers
