"""The backend over TLS. The wheel's server has none: a relay before it has."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from src.cache.backends.base import CacheUnavailableError
from src.cache.backends.redis import RedisBackend
from src.core import redis_url
from src.core.redis_url import RedisURL
from tests.test_cache.test_redis.servers import relay

OPENSSL = shutil.which("openssl") or ""

pytestmark = pytest.mark.skipif(not OPENSSL, reason="openssl makes the certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, signed by itself, with its key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/certificate.pem"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [OPENSSL, "req", "-x509", "-days", "1", *key, *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "certificate.pem"


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


async def test_certificate_that_is_known_is_trusted(
    url: RedisURL, tls: ssl.SSLContext, certificate: Path, namespace: str
) -> None:
    async with relay(url, tls) as proxy:
        text = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={certificate}"
        async with RedisBackend(redis_url.parse(text), namespace=namespace) as backend:
            await backend.set("key", "value")
            assert await backend.get("key") == "value"


async def test_certificate_that_is_not_known_is_refused(
    url: RedisURL, tls: ssl.SSLContext, namespace: str
) -> None:
    async with relay(url, tls) as proxy:
        stranger = redis_url.parse(f"rediss://127.0.0.1:{proxy.port}")
        async with RedisBackend(stranger, namespace=namespace) as backend:
            with pytest.raises(CacheUnavailableError, match="certificate"):
                await backend.ping()
