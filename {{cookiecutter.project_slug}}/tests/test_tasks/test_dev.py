"""`python cli.py dev` runs a worker too, on a broker of its own."""

import json
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.test_dev.processes import LIMIT, end, eventually, owner
from tests.test_dev.test_stack import STACK, answers


def call(url: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "text/csv"})  # noqa: S310 - as below
    with urllib.request.urlopen(request, timeout=LIMIT) as response:  # noqa: S310 - ours, http
        return json.load(response)


@pytest.mark.slow
def test_a_task_is_done_while_dev_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("PORT", str(port))
    with owner(STACK + "sys.exit(stack.run_stack())", tmp_path) as dev:
        api = f"http://127.0.0.1:{port}/api/v1"
        eventually(lambda: answers(f"{api}/health/ready"), "an API")
        task = call(f"{api}/item-imports/", b"name\nLamp\n")["task_id"]
        eventually(
            lambda: call(f"{api}/tasks/{task}")["status"] == "succeeded", "the end of the task"
        )
        assert end(dev, signal.SIGINT) == 0
