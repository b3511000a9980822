"""The keys of the issuer, which are loaded at startup and about once an hour.

So removed keys are no longer accepted. A token with an unknown key loads them again, at most once a
minute. While the issuer is unavailable, the keys of the last time stay in use.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
import structlog
from joserfc.jwk import Key

from src.oidc.documents import Documents, IssuerError, fetch, open_client
from src.oidc.errors import IssuerUnavailableError

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 3600.0
RETRY_SECONDS = 10.0
UNKNOWN_KEY_SECONDS = 60.0  # between two refreshes for an unknown key
WAIT_SECONDS = 3.0  # for which a request waits for keys


class Issuer:
    def __init__(self, url: str, client: httpx2.AsyncClient) -> None:
        self.url = url
        self.is_available = False
        self.documents: Documents | None = None
        self._client = client
        self._refresh = asyncio.create_task(self._load())
        self._refreshed_at = time.monotonic()

    async def find_key(self, key_id: str | None, algorithm: str) -> Key | None:
        """Return the key for this ID and algorithm; without an ID, the only key that fits.

        Raises IssuerUnavailableError if no keys have been loaded yet.
        """
        key = self._find(key_id, algorithm)
        if key is None and (key_id is not None or self.documents is None):
            age = time.monotonic() - self._refreshed_at
            if self.documents is not None and age >= UNKNOWN_KEY_SECONDS:
                self._start_refresh()
            # All requests wait for the same task, which continues if one of them is cancelled.
            await asyncio.wait({self._refresh}, timeout=WAIT_SECONDS)
            key = self._find(key_id, algorithm)
        if self.documents is None:
            raise IssuerUnavailableError
        return key

    def _find(self, key_id: str | None, algorithm: str) -> Key | None:
        fitting = [
            each.key
            for each in (self.documents.keys if self.documents else ())
            if algorithm in each.algorithms and key_id in {None, each.key.kid}
        ]
        is_clear = len(fitting) == 1 or (fitting and key_id is not None)
        return fitting[0] if is_clear else None

    async def keep_current(self) -> None:
        """Load the keys again and again."""
        while True:
            await asyncio.wait({self._refresh})
            seconds = REFRESH_SECONDS if self.is_available else RETRY_SECONDS
            # Processes that have started together should not call the issuer together.
            await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - not a secret
            self._start_refresh()

    def _start_refresh(self) -> None:
        if self._refresh.done():
            self._refresh = asyncio.create_task(self._load())
            self._refreshed_at = time.monotonic()

    async def _load(self) -> None:
        try:
            documents = await fetch(self._client, self.url)
        except IssuerError as error:
            self.is_available = False
            has_keys = self.documents is not None
            log.warning("oidc_unavailable", issuer=self.url, has_keys=has_keys, cause=str(error))
            return
        if not self.is_available:
            log.info("oidc_recovered" if self.documents else "oidc_available", issuer=self.url)
        self.documents, self.is_available = documents, True

    async def close(self) -> None:
        self._refresh.cancel()
        await asyncio.wait({self._refresh})


@asynccontextmanager
async def open_issuer(url: str) -> AsyncGenerator[Issuer]:
    """Load the keys in the background: the service starts while the issuer is unavailable."""
    async with open_client() as client:
        issuer = Issuer(url, client)
        current = asyncio.create_task(issuer.keep_current())
        try:
            yield issuer
        finally:
            current.cancel()
            await issuer.close()
