"""The embedded RabbitMQ: real, kept or thrown away, and never left behind."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from dev import rabbitmq, server
from dev.rabbitmq import NODE, embedded_rabbitmq
from dev.server import ServerError, free_port
from tests.test_dev.processes import Owner, eventually

LISTENING = "0A"  # in /proc/net/tcp
PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
OWNER = """
from dev.rabbitmq import embedded_rabbitmq
with embedded_rabbitmq(*map(Path, sys.argv[1:])) as url:
    report(url)
    sys.stdin.read()
"""


def is_installed() -> bool:
    try:
        rabbitmq._find_script()  # noqa: SLF001 - whether to skip, where nothing can be started
    except ServerError:
        return False
    return True


needs_server = pytest.mark.skipif(not is_installed(), reason="RabbitMQ is not installed")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the servers of a test, and of its owners, have their temporary folders.

    It is not in `tmp_path`, whose path may be too long, but comes after it lest that be in here.
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
    """Find all that runs with a folder of ours as its HOME: guards, servers and their helpers."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"\0HOME={home}/".encode() in b"\0" + (process / "environ").read_bytes():
                found[int(process.name)] = (process / "comm").read_text().strip()
        except OSError:  # it is gone, or of somebody else
            continue
    return found


def listening(home: Path) -> set[str]:
    """Find where our processes listen, as hexadecimal addresses and ports."""
    sockets = set()
    for pid in processes_in(home):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            sockets.add(str(descriptor.readlink()))
    lines = [line for table in ("tcp", "tcp6") for line in table_of(table)]
    return {
        fields[1]
        for fields in (line.split() for line in lines)
        if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets
    }


def table_of(protocol: str) -> list[str]:
    path = Path("/proc/net", protocol)
    return path.read_text().splitlines()[1:] if path.exists() else []


def wait_until_nothing_is_left(home: Path) -> None:
    eventually(lambda: not processes_in(home), "the end of all processes")
    eventually(lambda: not any(home.iterdir()), "removal of the temporary folder")


def pid_of_server(data: Path) -> int:
    return int((data / f"{NODE}.pid").read_text())


@needs_server
@needs_proc
@pytest.mark.slow
def test_server_passes_messages_keeps_to_itself_and_leaves_nothing(home: Path) -> None:
    """And it does so where the environment points at other servers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NODENAME": "other", "CONFIG_FILE": "/no", "NODE_PORT": "1"}.items():
            patch.setenv(f"RABBITMQ_{name}", value)
        with embedded_rabbitmq() as url:
            publish(url, "letters", b"hello")
            assert consume(url, "letters") == b"hello"
            assert consume(url, "letters") is None
            port = urlsplit(url).port or 0
            assert listening(home) == {f"0100007F:{port:04X}"}  # 127.0.0.1
            assert "epmd" not in processes_in(home).values()
    wait_until_nothing_is_left(home)


@needs_server
@pytest.mark.slow
def test_messages_are_kept_with_data_for_the_next_start(tmp_path: Path) -> None:
    data = tmp_path / "of a project" / "rabbitmq"
    with embedded_rabbitmq(data) as url:
        publish(url, "letters", b"kept")
    with embedded_rabbitmq(data) as url:
        assert consume(url, "letters") == b"kept"


@needs_server
@pytest.mark.slow
def test_second_server_is_another_and_takes_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the port that it thought to be free is taken, and by a RabbitMQ that answers."""
    with embedded_rabbitmq() as one:
        ports = iter([urlsplit(one).port])
        monkeypatch.setattr(rabbitmq, "free_port", lambda: next(ports, None) or free_port())
        with embedded_rabbitmq() as other:
            assert next(ports, "taken") == "taken"
            publish(one, "letters", b"for one")
            assert consume(other, "letters") is None
            assert consume(one, "letters") == b"for one"


@needs_server
@pytest.mark.slow
def test_data_in_use_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded_rabbitmq(tmp_path) as url:
        monkeypatch.setattr(server, "RELEASE_LIMIT", 0.1)
        message = f"{tmp_path} is already in use by another process"
        with pytest.raises(ServerError, match=message), embedded_rabbitmq(tmp_path):
            pass
        publish(url, "letters", b"still there")
        assert consume(url, "letters") == b"still there"


@needs_server
@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_however_its_owner_dies(
    death: signal.Signals, home: Path, tmp_path: Path
) -> None:
    """And the next start, at once, waits until the data are free."""
    with Owner(OWNER, tmp_path) as owner:
        (url,) = owner.reported()
        publish(url, "letters", b"kept")
        owner.send(death)
        with embedded_rabbitmq(tmp_path) as url:
            assert consume(url, "letters") == b"kept"
    wait_until_nothing_is_left(home)


@needs_server
@needs_proc
@pytest.mark.slow
def test_start_that_was_cut_short_leaves_nothing(home: Path) -> None:
    with Owner(OWNER) as owner:
        eventually(lambda: "beam.smp" in processes_in(home).values(), "a server on its way")
        owner.send(signal.SIGKILL)
        wait_until_nothing_is_left(home)


@needs_server
@needs_proc
@pytest.mark.slow
def test_server_that_was_killed_itself_leaves_nothing_but_its_data(
    home: Path, tmp_path: Path
) -> None:
    with embedded_rabbitmq(tmp_path) as url:
        publish(url, "letters", b"kept")
    with embedded_rabbitmq(tmp_path):  # it is killed with nothing left to write
        os.kill(pid_of_server(tmp_path), signal.SIGKILL)
        eventually(lambda: not processes_in(home), "the end of all processes")
    assert not any(home.iterdir())
    with embedded_rabbitmq(tmp_path) as url:
        assert consume(url, "letters") == b"kept"


@needs_server
@pytest.mark.slow
def test_server_that_cannot_start_is_explained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq, "CONFIGURATION", "nonsense = 1\n")
    with (
        pytest.raises(ServerError, match=r"RabbitMQ cannot be started here \(.*set nonsense"),
        embedded_rabbitmq(),
    ):
        pass
    assert not any(home.iterdir())


@needs_server
def test_data_that_cannot_be_kept_there_are_explained(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"file cannot be used: File exists"
    with pytest.raises(ServerError, match=message), embedded_rabbitmq(tmp_path / "file"):
        pass
    assert not any(home.iterdir())


def test_missing_program_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(rabbitmq, "FOLDERS", ())
    advice = "`apt-get install rabbitmq-server` .* set RABBITMQ_URL to a server of your own"
    with pytest.raises(ServerError, match=advice), embedded_rabbitmq():
        pass
