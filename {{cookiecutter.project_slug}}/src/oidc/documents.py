"""The documents of an issuer: its configuration (OpenID Connect Discovery) and its keys (JWKS)."""

import asyncio
import json
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeGuard
from urllib.parse import urlsplit

import httpx2
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key, RSAKey
from joserfc.jws import JWSRegistry

from src.oidc.tokens import ALGORITHMS

FETCH_SECONDS = 5.0  # for one document
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_KEYS = 100
MIN_RSA_BITS = 2048


class IssuerError(Exception):
    """The issuer is unavailable, or sent something else than its documents."""


@dataclass(frozen=True)
class Endpoints:
    authorization: str
    token: str


@dataclass(frozen=True)
class VerificationKey:
    key: Key
    algorithms: frozenset[str]


@dataclass(frozen=True)
class Documents:
    keys: tuple[VerificationKey, ...]
    endpoints: Endpoints | None  # for the login of the documentation page


@asynccontextmanager
async def open_client() -> AsyncGenerator[httpx2.AsyncClient]:
    # A compressed document may be a bomb. A redirect may lead to another host.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with httpx2.AsyncClient(
        headers=headers, timeout=FETCH_SECONDS, follow_redirects=False
    ) as client:
        yield client


async def fetch(client: httpx2.AsyncClient, issuer: str) -> Documents:
    """Raises IssuerError."""
    document = await _get(client, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if document.get("issuer") != issuer:
        # An issuer that ends with a slash is not the same as one without.
        raise IssuerError(f"It calls itself {document.get('issuer')!r}")
    jwks_uri = document.get("jwks_uri")
    if not _is_secure(jwks_uri, issuer):
        raise IssuerError("Its jwks_uri is not an https:// URL")
    keys = tuple(_usable_keys(await _get(client, jwks_uri)))
    if not keys:
        raise IssuerError("It has no key that this service can use")
    authorization, token = (document.get(f"{name}_endpoint") for name in ("authorization", "token"))
    if _is_secure(authorization, issuer) and _is_secure(token, issuer):
        return Documents(keys, Endpoints(authorization, token))
    return Documents(keys, None)  # an issuer of tokens for programs needs no login


def _is_secure(url: object, issuer: str) -> TypeGuard[str]:
    """Whether it is an `https://` URL; or `http://` as the issuer itself, for development."""
    schemes = ("https://", f"{urlsplit(issuer).scheme}://")
    return isinstance(url, str) and url.startswith(schemes)


async def _get(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            document = json.loads(await _body(client, url))
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
        raise IssuerError(f"{url}: {error!r}") from error
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise IssuerError(f"{url} is not a JSON object")
    return document


async def _body(client: httpx2.AsyncClient, url: str) -> bytes:
    body = bytearray()
    async with client.stream("GET", url) as response:
        if response.status_code != HTTPStatus.OK:
            raise IssuerError(f"{url} responded with status {response.status_code}")
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise IssuerError(f"{url} is longer than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(body)


def _usable_keys(document: dict[str, Any]) -> Iterator[VerificationKey]:
    """Skip keys for encryption, short keys, and kinds of keys that are not known."""
    members = document.get("keys")
    for member in members[:MAX_KEYS] if isinstance(members, list) else ():
        try:
            with warnings.catch_warnings(action="ignore", category=SecurityWarning):
                key = JWKRegistry.import_key(member)
            algorithms = JWSRegistry.filter_algorithms(key, list(ALGORITHMS))
            key.check_key_op("verify")
        except (JoseError, AttributeError, KeyError, TypeError, ValueError):
            continue
        is_short = isinstance(key, RSAKey) and key.raw_value.key_size < MIN_RSA_BITS
        if algorithms and not is_short:
            yield VerificationKey(key, frozenset(each.name for each in algorithms))
