"""The embedded RabbitMQ, with stored and with temporary data."""

import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from dev import rabbitmq
from dev.rabbitmq import embedded_rabbitmq
from dev.server import ServerError, free_port
from tests.test_dev.processes import end, eventually, owner, reported_by

PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
OWNER = """
from dev.rabbitmq import embedded_rabbitmq
with embedded_rabbitmq(*map(Path, sys.argv[1:])) as url:
    report(url)
    sys.stdin.read()
"""


def is_installed() -> bool:
    try:
        rabbitmq._find_script()  # noqa: SLF001 - without starting a server
    except ServerError:
        return False
    return True


pytestmark = pytest.mark.slow
needs_server = pytest.mark.skipif(not is_installed(), reason="RabbitMQ is not installed")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The parent of the servers' temporary directories.

    It is outside of `tmp_path`, whose path may be too long. `tmp_path` must exist first, or it would
    be created in here.
    """
    assert tmp_path.exists()
    with tempfile.TemporaryDirectory(prefix="home-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@contextmanager
def channel(url: str) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        yield connection.channel()


def publish(url: str, queue: str, body: bytes) -> None:
    with channel(url) as it:
        it.confirm_delivery()
        it.queue_declare(queue, durable=True)
        it.basic_publish("", queue, body, PERSISTENT)


def consume(url: str, queue: str) -> bytes | None:
    with channel(url) as it:
        it.queue_declare(queue, durable=True)
        body: bytes | None = it.basic_get(queue, auto_ack=True)[2]
        return body


def processes_in(home: Path) -> dict[int, str]:
    """Return the processes with a HOME below `home`: supervisors, servers and their helpers."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"\0HOME={home}/".encode() in b"\0" + (process / "environ").read_bytes():
                found[int(process.name)] = (process / "comm").read_text().strip()
        except OSError:  # it has ended, or another user runs it
            continue
    return found


def wait_until_all_is_removed(home: Path) -> None:
    eventually(lambda: not processes_in(home), "the end of all processes")
    eventually(lambda: not any(home.iterdir()), "removal of the temporary folder")


@needs_server
@needs_proc
def test_temporary_server_leaves_nothing_behind(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ's variables have no effect. A port that is taken in the meantime is replaced."""
    for name, value in {"NODENAME": "other", "CONFIG_FILE": "/no", "NODE_PORT": "1"}.items():
        monkeypatch.setenv(f"RABBITMQ_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(rabbitmq, "free_port", lambda: next(ports, None) or free_port())
        with embedded_rabbitmq() as url:
            assert next(ports, None) is None
            publish(url, "letters", b"hello")
            assert consume(url, "letters") == b"hello"
            assert consume(url, "letters") is None
            assert "epmd" not in processes_in(home).values()
    wait_until_all_is_removed(home)


@needs_server
@needs_proc
def test_server_stops_when_its_owner_is_killed(home: Path, tmp_path: Path) -> None:
    """A new server on the same data waits until the old one has stopped, and has its messages."""
    with owner(OWNER, tmp_path) as process:
        publish(reported_by(process), "letters", b"kept")
        end(process, signal.SIGKILL)
        with embedded_rabbitmq(tmp_path) as url:
            assert consume(url, "letters") == b"kept"
    wait_until_all_is_removed(home)


@needs_server
def test_error_of_the_server_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq, "CONFIGURATION", "nonsense = 1\n")
    with (
        pytest.raises(ServerError, match=r"Cannot start RabbitMQ: .*set nonsense"),
        embedded_rabbitmq(),
    ):
        pass
    assert not any(home.iterdir())


def test_missing_installation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(rabbitmq, "FOLDERS", ())
    message = "`apt-get install rabbitmq-server` .* Set RABBITMQ_URL to use another server"
    with pytest.raises(ServerError, match=message), embedded_rabbitmq():
        pass
