"""A PgBouncer in transaction mode, in front of the PostgreSQL of the tests."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import URL

from dev.server import run_folder
from tests.fixtures.pages import blocks

# Debian installs it into a directory that is not in every PATH.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")

# In addition to the settings of `docs/capacity.md`.
ADDED = """
listen_addr =
unix_socket_dir = {folder}
auth_type = any
# Use another server connection for each transaction, so that mistakes show.
server_round_robin = 1
"""


@asynccontextmanager
async def pgbouncer(
    target: URL, *, pool_size: int = 4, query_wait_timeout: int = 60
) -> AsyncGenerator[URL]:
    """Start PgBouncer; yield the URL of the database behind it."""
    with run_folder("pgbouncer-") as folder:
        [configuration] = blocks("capacity.md", "ini")
        host = target.host or target.query["host"]
        database = f"* = host={host} port={target.port or target.query['port']}"
        database += f" user={target.username}"
        database += f" password='{target.password}'" if target.password else ""
        values = {"default_pool_size": pool_size, "query_wait_timeout": query_wait_timeout}
        configuration = configuration.replace("app = host=10.0.0.5 port=5432", database)
        for name, value in values.items():
            configuration = re.sub(rf"\n{name} = .*", f"\n{name} = {value}", configuration)
        configuration += ADDED.format(folder=folder)
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
