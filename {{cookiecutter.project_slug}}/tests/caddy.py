"""A Caddy with the project's `Caddyfile`, in front of a server of a test."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from src.core.config import ROOT
from tests.fixtures.commands import LIMIT, free_port
from tests.process_killer import ProcessKiller

# A wheel installs it beside Python.
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
PROGRAM = shutil.which("caddy", path=_PATH)
needs_caddy = pytest.mark.skipif(PROGRAM is None, reason="Caddy is not installed")
# No port 80, and no change of the certificates that this machine trusts.
OPTIONS = "{\n\tauto_https disable_redirects\n\tskip_install_trust"


@contextmanager
def caddy(server: str, *, tls: bool = True, **values: str) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Start Caddy for a server like `127.0.0.1:8001`; yield its address, and whom to trust.

    `values` are other values of directives.
    """
    port = free_port()
    text = (ROOT / "Caddyfile").read_text(encoding="utf-8")
    text = text.replace("api:8000", server).replace("{\n", f"{OPTIONS}\n", 1)
    if tls:
        text = text.replace("{$DOMAIN} {\n", "{$DOMAIN} {\n\ttls internal\n")
    for name, value in values.items():
        text, count = re.subn(rf"(\t{name}) \S+", rf"\1 {value}", text)
        assert count == 1, name
    address = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "Caddyfile"
        file.write_text(text, encoding="utf-8")
        variables = {"XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder, "DOMAIN": address}
        process = subprocess.Popen(
            [str(PROGRAM), "run", "--adapter", "caddyfile", "--config", file],
            env=os.environ | variables,
            start_new_session=True,
        )
        killer = ProcessKiller(process.pid)
        try:
            yield address, _wait_until_it_serves(port, process, Path(folder) if tls else None)
        finally:
            killer.kill()
            process.wait()


def _wait_until_it_serves(
    port: str, process: "subprocess.Popen[bytes]", folder: Path | None
) -> ssl.SSLContext:
    deadline = time.monotonic() + LIMIT
    trust = ssl.create_default_context()
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(port))) as connected:
            if folder:  # it listens before it has made its certificates
                trust.load_verify_locations(folder / "caddy/pki/authorities/local/root.crt")
                trust.wrap_socket(connected, server_hostname="localhost").close()
            return trust
        time.sleep(0.05)
    pytest.fail("Caddy does not serve")
