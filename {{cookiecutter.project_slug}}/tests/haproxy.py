"""A HAProxy with the configuration of `docs/reverse-proxy.md`, in front of servers of a test."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from src.core.config import ROOT
from tests.fixtures.commands import free_port
from tests.process_killer import ProcessKiller

PROGRAM = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
needs_haproxy = pytest.mark.skipif(PROGRAM is None, reason="HAProxy is not installed")


@contextmanager
def haproxy(*servers: str, **timeouts: str) -> Iterator[str]:
    """Start HAProxy for servers like `127.0.0.1:8001`; yield its address."""
    port = free_port()
    page = (ROOT / "docs/reverse-proxy.md").read_text(encoding="utf-8")
    text = page.split("```text\n")[1].split("```")[0]
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    # Shows which server has sent a response.
    text = text.replace(
        "\nbackend api\n", "\nbackend api\n    http-response set-header x-server %s\n"
    )
    for number, server in enumerate(servers, 1):
        text = re.sub(rf"(server api{number}) \S+", rf"\1 {server}", text)
    for name, value in timeouts.items():
        text = re.sub(rf"(timeout {name.replace('_', '-')}) \S+", rf"\1 {value}", text)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "haproxy.cfg"
        file.write_text(text, encoding="utf-8")
        process = subprocess.Popen([str(PROGRAM), "-db", "-f", file], start_new_session=True)
        killer = ProcessKiller(process.pid)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            killer.kill()
            process.wait()
