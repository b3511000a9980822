"""A PgBouncer in transaction mode, in front of the PostgreSQL of the tests."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import URL

from dev.server import run_folder

# Debian installs it into a directory that is not in every PATH.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")

CONFIGURATION = """
[databases]
* = host={host} port={port} user={user} {password}
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
auth_type = any
# Use another server connection for each transaction, so that mistakes show.
server_round_robin = 1
pool_mode = transaction
default_pool_size = 4
"""


@asynccontextmanager
async def pgbouncer(target: URL, *, settings: str = "") -> AsyncGenerator[URL]:
    """Start PgBouncer; yield the URL of the database behind it. `settings` override others."""
    with run_folder("pgbouncer-") as folder:
        configuration = CONFIGURATION.format(
            host=target.host or target.query["host"],
            port=target.port or target.query["port"],
            user=target.username,
            password=f"password='{target.password}'" if target.password else "",
            folder=folder,
        )
        configuration += settings
        file = folder / "pgbouncer.ini"
        file.write_text(configuration, encoding="utf-8")
        # It refuses to run as root. The embedded PostgreSQL runs as this user, too.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        if user:
            shutil.chown(folder, "nobody")
        process = await asyncio.create_subprocess_exec(
            str(PROGRAM), *user, str(file), stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr
        try:
            while b"process up" not in (line := await process.stderr.readline()):
                assert line, "PgBouncer has stopped"
            log = asyncio.create_task(process.stderr.read())
            yield target.set(host=None, port=None, query={"host": str(folder), "port": "6432"})
        finally:
            process.kill()
            await process.wait()
        await log


def pooled(url: URL) -> URL:
    """Return the URL as with DATABASE_POOLER=true."""
    return url.update_query_dict({"pgbouncer": "true"})
