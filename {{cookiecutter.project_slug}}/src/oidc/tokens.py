"""Access tokens: signed JWTs (RFC 7519, RFC 9068), and what a valid one looks like.

The checks follow RFC 8725. Nothing in a token selects where its key comes from: the headers `jku`,
`x5u`, `jwk` and `x5c` are ignored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc.errors import ClaimError, JoseError
from joserfc.jwa import JWS_ALGORITHMS
from joserfc.jwk import Key
from joserfc.jwt import JWTClaimsRegistry
from joserfc.util import urlsafe_b64decode

from src.oidc.errors import InvalidTokenError

MAX_TOKEN_LENGTH = 16 * 1024
MAX_SUBJECT_LENGTH = 255  # OpenID Connect Core, section 2
CLOCK_SKEW_SECONDS = 30

# Signatures with a public key. `none` and those with a shared secret (HS256) are never accepted.
ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in JWS_ALGORITHMS
    if algorithm.name
    in {
        *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"),
        *("EdDSA", "Ed25519", "Ed448"),
    }
}
# RFC 9068 requires `at+jwt`; most providers send `JWT`, some nothing. Other tokens of a provider
# have other types, such as `secevent+jwt` and `dpop+jwt`.
_TYPES = {"", "jwt", "at+jwt", "application/at+jwt"}
# Only ID tokens and security events (RFC 8417) have these.
_FOREIGN_CLAIMS = ("nonce", "at_hash", "c_hash", "s_hash", "events")


@dataclass(frozen=True)
class UnverifiedToken:
    """A token whose signature is not verified yet."""

    algorithm: str
    key_id: str | None
    signed: bytes
    signature: bytes
    payload: bytes

    def verify(self, key: Key) -> dict[str, Any]:
        """Return the claims. Raises InvalidTokenError if the signature is wrong."""
        algorithm = ALGORITHMS[self.algorithm]
        try:
            algorithm.check_key(key)
            is_valid = algorithm.verify(self.signed, self.signature, key)
        except (JoseError, ValueError):
            is_valid = False
        if not is_valid:
            raise InvalidTokenError("the signature is wrong")
        return _parse_object(self.payload)


def parse(text: str) -> UnverifiedToken:
    """Raises InvalidTokenError."""
    if len(text) > MAX_TOKEN_LENGTH:
        raise InvalidTokenError("it is too long")
    segments = text.encode("ascii", "replace").split(b".")
    if len(segments) != 3:  # noqa: PLR2004 - header, payload and signature
        raise InvalidTokenError("it is not a signed JWT")
    header, payload, signature = map(_decode, segments)
    members = _parse_object(header)
    algorithm, key_id, kind = (members.get(name) for name in ("alg", "kid", "typ"))
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise InvalidTokenError("its algorithm is not allowed")
    if not isinstance(key_id, str | None):
        raise InvalidTokenError("its key ID is not a text")
    if not isinstance(kind, str | None) or (kind or "").lower() not in _TYPES:
        raise InvalidTokenError("its type is not that of an access token")
    if "crit" in members or "b64" in members:
        raise InvalidTokenError("it has critical headers")
    signed = b".".join(segments[:2])
    return UnverifiedToken(algorithm, key_id, signed, signature, payload)


def _decode(segment: bytes) -> bytes:
    try:
        return urlsafe_b64decode(segment)  # only the canonical form, without padding
    except ValueError:
        raise InvalidTokenError("it is not encoded as Base64url") from None


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        members = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise InvalidTokenError("a part of it is not a JSON object")
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("A name occurs twice.")
    return members


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are not JSON


class ClaimsCheck:
    def __init__(self, issuer: str, audience: Sequence[str]) -> None:
        self._has_audience = bool(audience)  # without it, the registry would accept every token
        self._registry = JWTClaimsRegistry(
            leeway=CLOCK_SKEW_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "values": list(audience)},
            exp={"essential": True},
            sub={"essential": True},
        )

    def check(self, claims: Mapping[str, Any]) -> None:
        """Raises InvalidTokenError."""
        if not self._has_audience:
            raise InvalidTokenError("OIDC_AUDIENCE is not set")
        try:
            self._registry.validate(dict(claims))
        except ClaimError as error:
            raise InvalidTokenError(str(error)) from None
        subject = claims["sub"]
        if not (0 < len(subject) <= MAX_SUBJECT_LENGTH and subject.isprintable()):
            raise InvalidTokenError("its subject is too long, or contains control characters")
        # Keycloak has `Bearer`, `ID`, `Refresh` and others here.
        is_foreign = str(claims.get("typ", "Bearer")).lower() not in {"bearer", *_TYPES}
        if is_foreign or any(name in claims for name in _FOREIGN_CLAIMS):
            raise InvalidTokenError("it is not an access token, but an ID token for example")
        if "cnf" in claims:
            raise InvalidTokenError("only the owner of a key may use it, which is not checked here")
