"""The text of an API key: `<prefix>_<id>_<secret><checksum>`, in letters and digits.

Secret scanners recognize it by the prefix, and its CRC-32 tells a real key from a similar text.
Only a hash of the secret is stored. SHA-256 is enough for it: no one can guess 256 bits, so the
hash needs neither salt nor a slow function.
"""

import re
import secrets
import string
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

_ALPHABET = string.digits + string.ascii_letters
_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH = 12, 43, 6
_SECRET_BITS = 256
# Any prefix, so that keys remain valid if the project gets another name.
_FORMAT = re.compile(r"[0-9a-z]{1,100}_([0-9A-Za-z]{12})_([0-9A-Za-z]{43})[0-9A-Za-z]{6}")


class Credential(NamedTuple):
    id: str  # public: logs contain it
    secret: str


def new_credential() -> Credential:
    return Credential("".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH)), new_secret())


def new_secret() -> str:
    return _base62(secrets.randbits(_SECRET_BITS), _SECRET_LENGTH)


def format_key(prefix: str, credential: Credential) -> str:
    text = f"{prefix}_{credential.id}_{credential.secret}"
    return text + _checksum(text)


def parse(text: str) -> Credential | None:
    """Return None if the format or the checksum is wrong."""
    found = _FORMAT.fullmatch(text)
    if found is None or _checksum(text[:-_CHECKSUM_LENGTH]) != text[-_CHECKSUM_LENGTH:]:
        return None
    return Credential(*found.groups())


def hash_of(secret: str) -> bytes:
    """Return what the database stores."""
    return sha256(secret.encode()).digest()


def _checksum(text: str) -> str:
    return _base62(crc32(text.encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits.rjust(length, _ALPHABET[0])
