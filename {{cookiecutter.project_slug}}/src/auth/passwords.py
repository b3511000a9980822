"""Passwords: which ones are accepted, and argon2id in few threads."""

import asyncio
import re
import secrets
import unicodedata
from base64 import b64encode
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import SecretStr

from src.core import unsafe
from src.domain.errors import InvalidValueError, OverloadedError

R = TypeVar("R")

# The minimum of OWASP's Password Storage Cheat Sheet. More memory would slow down attackers too, but
# each log-in at the same time needs it. You may increase the values: hashes are renewed at log-in.
MEMORY_KIB = 19 * 1024
ITERATIONS = 2
PARALLELISM = 1

# Of a process. With one thread, hashes take at most one core, and the event loop another.
MAX_RUNNING = 1
MAX_WAITING = 50  # the last one waits for about 2 s; more requests get 503

# NIST SP 800-63B-4 requires 15 characters without a second factor, and no rules for kinds of
# characters. A limit protects the service from enormous texts; NIST asks for 64 or more.
MIN_LENGTH = 15
MAX_LENGTH = 128

# Long passwords that people choose often, as `_core` returns them. `unsafe.is_patterned` finds more.
_COMMON = """
administratorpassword allyourbasearebelongtous changemechangeme correcthorsebatterystaple
defaultpassword dontforgetthis followthewhiterabbit forgottenpassword howmuchwoodwouldawoodchuckchuck
iforgotmypassword ihatepasswords ihatethispassword iloveyouforever iloveyousomuch iloveyoutotheend
iloveyouverymuch imwatchingyou jesusislord jesusismysavior keeptryingtoguess letmeinplease
mynameisjohncena mypassword mypasswordismypassword mypasswordispassword mypasswordissecret
mysecretpassword mysuperpassword nevergonnagiveyouup onceuponatime passwordispassword passwordpasswor
pleaseletmein qwertyuiopasdfghjklzxcvbnm rememberthispassword secretpassword strongpassword
supercalifragilisticexpialidocious supersecretpassword thequickbrownfox
thequickbrownfoxjumpsoverthelazydog thisisalongpassword thisisapassword thisisasecret
thisisastrongpassword thisismypassword thisisnotapassword thisisthepassword tobeornottobe
tobeornottobethatisthequestion welcometomyworld whatisthepassword whatsthepassword winteriscoming
youshallnotpass yourpasswordhere
"""


class UnacceptablePasswordError(InvalidValueError):
    code = "unacceptable-password"
    title = "Password not accepted"
    message = "{reason}"


def check(password: SecretStr, email: str, service: str) -> None:
    """Raise UnacceptablePasswordError. Attackers try the address and the name of the service too."""
    text = _normalize(password)
    length = len(text)
    # NFKC makes several characters of one, such as a ligature.
    if min(length, len(password.get_secret_value())) < MIN_LENGTH:
        reason = f"Use at least {MIN_LENGTH} characters, for example several words."
        raise UnacceptablePasswordError(reason=reason)
    if length > MAX_LENGTH:
        raise UnacceptablePasswordError(reason=f"Use at most {MAX_LENGTH} characters.")
    core = _core(text)
    related = (email, email.partition("@")[0], service)
    known = {*_COMMON.split(), *(_core(each) for each in related)}
    if core in known:
        raise UnacceptablePasswordError(reason="This password is easy to guess. Use another one.")
    is_most = len(core) > length // 2
    if unsafe.is_patterned(text.casefold()) or (is_most and unsafe.is_repeated(core)):
        reason = "This password repeats something or follows a sequence. Use another one."
        raise UnacceptablePasswordError(reason=reason)


def _normalize(password: SecretStr) -> str:
    """Keyboards and systems encode the same character in several ways."""
    return unicodedata.normalize("NFKC", password.get_secret_value())


def _core(text: str) -> str:
    """Return letters and digits, without case and without the digits at both ends."""
    core = re.sub(r"[\W_]", "", text.casefold())
    return core.strip("0123456789") or core


class Passwords:
    """Hashes and verifies passwords in few threads, so that requests and memory do not suffer."""

    def __init__(self) -> None:
        self._argon2 = PasswordHasher(
            time_cost=ITERATIONS, memory_cost=MEMORY_KIB, parallelism=PARALLELISM, type=Type.ID
        )
        self._free = asyncio.Semaphore(MAX_RUNNING)
        self._requests = 0
        # Has the format of a hash, but belongs to no password.
        salt, digest = (b64encode(secrets.token_bytes(size)).decode() for size in (16, 32))
        cost = f"m={MEMORY_KIB},t={ITERATIONS},p={PARALLELISM}"
        self._dummy = f"$argon2id$v=19${cost}${salt.rstrip('=')}${digest.rstrip('=')}"

    async def hash(self, password: SecretStr) -> str:
        """Raises OverloadedError."""
        return await self._run(self._argon2.hash, _normalize(password))

    async def verify(self, stored: str | None, password: SecretStr) -> bool:
        """Without a stored hash, take the same time and return False. Raises OverloadedError."""
        return await self._run(self._verify, stored or self._dummy, _normalize(password))

    def needs_rehash(self, stored: str) -> bool:
        """Return whether the hash has other parameters than new ones."""
        return self._argon2.check_needs_rehash(stored)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._argon2.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[..., R], *args: str) -> R:
        if self._requests >= MAX_RUNNING + MAX_WAITING:
            raise OverloadedError
        self._requests += 1
        try:
            async with self._free:
                return await asyncio.to_thread(work, *args)
        finally:
            self._requests -= 1
