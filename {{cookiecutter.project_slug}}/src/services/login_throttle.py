"""Slows down guesses of passwords, and the sending of e-mails, in all processes together.

An address has a budget, and so has an account. Others cannot lock out the owner of an account: an
address from which a log-in succeeded before has a separate budget for this account, and a delay
never exceeds 15 minutes. An account has a budget whether it exists or not.
"""

from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from math import ceil

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from src.db import Database
from src.domain.errors import TooManyRequestsError
from src.domain.user import UserMail
from src.repositories.user import LoginThrottleRepository, Throttle

log = structlog.get_logger(__name__)

_LONGEST = timedelta(minutes=15)
ADDRESS = Throttle(free=100, longest=_LONGEST, window=timedelta(hours=1))
ACCOUNT = Throttle(free=5, longest=_LONGEST, window=timedelta(days=1))
KNOWN_ADDRESS = Throttle(free=10, longest=_LONGEST, window=timedelta(days=90))
# E-mails that a client requests. One person reads `ann+1@`, `ann+2@` and so on.
MAIL_CLIENT = Throttle(free=30, longest=_LONGEST, window=timedelta(hours=1))
# Three e-mails at once, then one each hour.
MAIL = Throttle(
    free=2, first=timedelta(hours=1), longest=timedelta(hours=1), window=timedelta(days=1)
)


def _key(*parts: str) -> bytes:
    return sha256("\0".join(parts).encode()).digest()


@dataclass(frozen=True)
class Attempt:
    """An attempt to log in, which counts until it succeeds."""

    address_key: bytes
    account_key: bytes  # of the account, or of the account with this known address
    known_key: bytes

    @classmethod
    async def count(cls, database: Database, email: str, address: str) -> "Attempt":
        """Count an attempt in its own transaction. Raises TooManyRequestsError.

        `address` is the network of the client, as `address_of()` returns it.
        """
        email = email.lower()
        address_key = _key("address", address)
        known_key = _key("known", email, address)
        async with database.transaction() as db:
            throttles = LoginThrottleRepository(db)
            seconds = await throttles.count(address_key, ADDRESS)
            is_known = await throttles.exists(known_key)
            account_key = known_key if is_known else _key("account", email)
            if seconds is None:
                budget = KNOWN_ADDRESS if is_known else ACCOUNT
                seconds = await throttles.count(account_key, budget)
            await throttles.prune()
        if seconds is not None:
            raise TooManyRequestsError(ceil(seconds))
        return cls(address_key, account_key, known_key)

    async def succeed(self, db: AsyncSession) -> None:
        """Forget earlier attempts for the account. Those of the address for other accounts remain."""
        throttles = LoginThrottleRepository(db)
        await throttles.take_back(self.address_key)
        if self.account_key != self.known_key:
            await throttles.forget(self.account_key)
        await throttles.reset(self.known_key, KNOWN_ADDRESS.window)


async def trust_address(db: AsyncSession, email: str, address: str) -> None:
    """Forget failed attempts, after the owner of the account has proved to read its mailbox."""
    email = email.lower()
    await LoginThrottleRepository(db).forget(_key("account", email))
    known_key = _key("known", email, address)
    await LoginThrottleRepository(db).reset(known_key, KNOWN_ADDRESS.window)


async def may_mail(database: Database, mail: UserMail, email: str, address: str) -> bool:
    """Return whether another e-mail of this kind may be sent to the mailbox now.

    Each kind has a separate budget. A request of another kind may send nothing, because the address
    has no account, or has one; so others could use up the budget of the owner, who would get no
    mail. Raises TooManyRequestsError if the client has requested too many, for any mailbox.
    """
    waits = None
    async with database.transaction() as db:
        throttles = LoginThrottleRepository(db)
        blocked = await throttles.count(_key("mail from", address), MAIL_CLIENT)
        if blocked is None:
            key = _key("mail to", mail.value, email.lower())
            waits = await throttles.count(key, MAIL)
        await throttles.prune()
    if blocked is not None:
        raise TooManyRequestsError(ceil(blocked))
    if waits is not None:
        log.info("mail_not_sent", mail=mail.value, reason="the mailbox was sent several")
    return waits is None
