"""URLs of hosting providers."""

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, text

from src.core import postgres_url
from src.core.config import InvalidSettingsError, load_settings
from src.db import connection
from src.db.session import DatabaseUnavailableError, open_database
from tests.proxy import PostgresProxy

OPENSSL = shutil.which("openssl") or ""


def arguments_of(url: str) -> dict[str, Any]:
    location, arguments = connection.split(postgres_url.parse(url))
    return {**location.get_dialect()().create_connect_args(location)[1], **arguments}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p%40%2F@h:6543/d", {"host": "h", "port": 6543, "password": "p@/"}),
        ("postgresql+psycopg://u%40srv:p@h/d", {"user": "u@srv", "database": "d"}),
        ("postgres://u:p@h/d?connect_timeout=3&command_timeout=0", {"timeout": 3}),
        ("postgres://u:p@a:1,b/d", {"host": ["a", "b"], "port": [1, 5432]}),
        ("postgres://u:p@/d?host=a,b&port=1,2", {"host": ["a", "b"], "port": [1, 2]}),
        ("postgres://u:p@/d?host=/cloudsql/p:eu:i", {"host": "/cloudsql/p:eu:i"}),
        ("postgres://u:p@%2Fcloudsql%2Fp%3Aeu%3Ai/d", {"host": "/cloudsql/p:eu:i", "port": 5432}),
        ("postgres://u:p,w@/d?host=/run/x", {"host": "/run/x", "password": "p,w"}),
        ("postgres://u:p/w#@h/d", {"host": "h", "password": "p/w#"}),
        ("postgres://u:p@h/d?ssl=require", {"dsn": "postgresql:?sslmode=require"}),
        ("postgres://u:p@h/d?sslmode=verify-full", {"ssl": True}),
        ("postgres://u:p@h/d?sslrootcert=system", {"ssl": True}),
        ("postgres://u:p@h/d?sslmode=require&channel_binding=require", {"ssl": True}),
        ("postgres://u:p@h/d?sslmode=require&channel_binding=prefer", {"ssl": None}),
    ],
)
def test_options_become_arguments(url: str, expected: dict[str, Any]) -> None:
    found = arguments_of(url)

    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("schema=mine", "schema, which is not supported: write options=-c%20search_path"),
        ("connection_limit=1", "set DATABASE_POOL_SIZE"),
        ("statement_timeout=5", "write options=-c%20statement_timeout"),
        ("load_balance_hosts=random", "the option load_balance_hosts, which is not supported"),
        ("sslmode=bogus", "sslmode must be one of disable, allow"),
        ("connect_timeout=soon", "connect_timeout must be a number"),
        ("sslrootcert=/ca.pem", "write sslmode=verify-full"),
        ("sslmode=disable&channel_binding=require", "write sslmode=verify-full"),
        ("host=a,b&port=1,2,3", "a host or port that is not valid"),
    ],
)
def test_other_options_are_refused(env: pytest.MonkeyPatch, options: str, message: str) -> None:
    env.setenv("DATABASE_URL", f"postgresql://me:hunter2@db/shop?{options}")

    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()

    assert "  DATABASE_URL: " in str(caught.value)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_server_settings_reach_the_server(committing_url: URL) -> None:
    url = committing_url.update_query_dict(
        {
            "application_name": "shop",
            "options": "-c statement_timeout=7s",
            "target_session_attrs": "primary",
        }
    )
    async with open_database(url, pool_size=1) as database, database.reads() as session:
        assert await session.scalar(text("SHOW application_name")) == "shop"
        assert await session.scalar(text("SHOW statement_timeout")) == "7s"


async def test_the_next_host_is_used_if_one_is_unavailable(db_proxy: PostgresProxy) -> None:
    hosts = ["127.0.0.1:1", f"127.0.0.1:{db_proxy.port}"]
    await read(db_proxy.url.set(host=None, port=None, query={"host": hosts}))


@pytest.mark.skipif(not OPENSSL, reason="the test needs openssl to create a certificate")
async def test_tls_verifies_the_certificate(committing_url: URL, tmp_path: Path) -> None:
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/certificate.pem"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [OPENSSL, "req", "-x509", "-days", "1", *key, *subject, *files]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    proxy = PostgresProxy(committing_url, tls=tls)
    await proxy.start()
    options = {"sslnegotiation": "direct", "sslmode": "verify-full"}
    known = options | {"sslrootcert": f"{tmp_path}/certificate.pem"}
    try:
        await read(proxy.url.update_query_dict(known))
        with pytest.raises(DatabaseUnavailableError, match="certificate"):
            await read(proxy.url.update_query_dict(options | {"sslrootcert": "system"}))
        with pytest.raises(DatabaseUnavailableError, match="sslrootcert is not a file"):
            await read(proxy.url.update_query_dict(options | {"sslrootcert": "/missing"}))
        with pytest.raises(DatabaseUnavailableError, match="certificate"):
            await read(proxy.url.set(host="localhost").update_query_dict(known))
    finally:
        await proxy.stop()


async def read(url: URL) -> None:
    async with open_database(url, pool_size=1) as database, database.reads() as session:
        assert await session.scalar(text("SELECT 1")) == 1
