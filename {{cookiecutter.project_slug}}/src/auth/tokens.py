"""Opaque tokens: 256 random bits after a prefix that secret scanners find.

Only the hash is stored. SHA-256 is enough for it: no one can guess 256 bits, so the hash needs
neither salt nor a slow function.
"""

import re
import secrets
from hashlib import sha256

SESSION = "session_"
ONE_TIME = "onetime_"  # in an e-mail

_SESSION_FORMAT = re.compile(SESSION + r"[A-Za-z0-9_-]{43}")


def create(prefix: str) -> str:
    return prefix + secrets.token_urlsafe(32)


def is_session_token(token: str) -> bool:
    """Return whether a credential has the format of a session's token."""
    return _SESSION_FORMAT.fullmatch(token) is not None


def hash_of(token: str) -> bytes:
    """Return what the database stores."""
    return sha256(token.encode()).digest()
