"""RabbitMQ as the broker: what is confirmed is there, and what is dead can be looked at."""

import asyncio
import contextlib
import logging
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import dramatiq
import pika
import pytest
from dramatiq import Message, Middleware, Worker
from dramatiq.broker import Broker, MessageProxy
from dramatiq.common import dq_name, xq_name
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Retries
from pika.exceptions import ChannelClosedByBroker

from src.tasks.engine.brokers import rabbitmq, rabbitmq_publisher
from src.tasks.engine.brokers.base import DIED_AT, ERROR, BrokerUnavailableError, QueueState
from src.tasks.engine.brokers.rabbitmq import RabbitmqConsumer, RabbitmqTaskBroker
from tests.proxy import Relay
from tests.test_tasks.servers.rabbitmq import serve
from tests.test_tasks.workers import LIMIT

PASSWORD = "guest"
OPENSSL = shutil.which("openssl")
EMPTY = QueueState(waiting=0, delayed=0, dead=0, oldest_seconds=None)
# Takes a message and neither finishes it nor says goodbye.
HANGING_WORKER = """
import sys, time
from src.tasks.engine.brokers.rabbitmq import RabbitmqTaskBroker
broker = RabbitmqTaskBroker(sys.argv[1], middleware=[])
message = next(broker.consume(sys.argv[2], timeout=60_000))
print(broker.is_redelivered(message), flush=True)
time.sleep(600)
"""


class Signals(Middleware):
    """Notes which messages were announced, and which were sent."""

    def __init__(self) -> None:
        self.before: list[str] = []
        self.after: list[str] = []

    def before_enqueue(self, _: Broker, message: Message[Any], delay: int | None) -> None:
        assert delay is None or delay > 0
        self.before.append(message.message_id)

    def after_enqueue(self, _: Broker, message: Message[Any], delay: int | None) -> None:
        assert delay is None or delay > 0
        self.after.append(message.message_id)


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with serve() as url:
        yield url


@pytest.fixture
def connection(url: str) -> Iterator[pika.BlockingConnection]:
    """To look behind the broker's back."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        yield connection


@pytest.fixture
def queue(connection: pika.BlockingConnection) -> Iterator[str]:
    name = f"test-{uuid4().hex}"
    yield name
    for each in (name, dq_name(name), xq_name(name)):
        connection.channel().queue_delete(each)


@pytest.fixture
def signals() -> Signals:
    return Signals()


@pytest.fixture
def broker(url: str, queue: str, signals: Signals) -> Iterator[RabbitmqTaskBroker]:
    broker = RabbitmqTaskBroker(url, middleware=[signals])
    broker.declare_queue(queue)
    yield broker
    broker.close()


Lose = Callable[[], None]


@pytest.fixture
def lose_patience(monkeypatch: pytest.MonkeyPatch) -> Lose:
    """Wait for no answer any more; not before the test has what a busy machine takes its time for."""

    def lose_patience() -> None:
        for module in (rabbitmq, rabbitmq_publisher):
            monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
            monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
        monkeypatch.setattr(rabbitmq_publisher, "BYTES_PER_SECOND", 1e9)

    return lose_patience


@pytest.fixture
async def line(url: str) -> AsyncGenerator[Relay]:
    """A way to the server that can fail."""
    parts = urlsplit(url)
    relay = Relay(lambda: asyncio.open_connection(parts.hostname, parts.port))
    await relay.start()
    yield relay
    await relay.stop()


@pytest.fixture
async def remote(url: str, queue: str, line: Relay) -> AsyncGenerator[RabbitmqTaskBroker]:
    """A broker at the other end of the line."""
    # With so rare heartbeats nobody finds out by them that the server hangs.
    broker = RabbitmqTaskBroker(f"{through(line, url)}?heartbeat=600", middleware=[])
    broker.declare_queue(queue)
    yield broker
    await asyncio.to_thread(broker.close)


def through(line: Relay, url: str, scheme: str = "amqp") -> str:
    parts = urlsplit(url)
    netloc = f"{parts.username}:{parts.password}@127.0.0.1:{line.port}"
    return parts._replace(scheme=scheme, netloc=netloc).geturl()


def message_to(queue: str, *args: Any, **options: Any) -> Message[Any]:
    return Message(queue, "act", args, {}, options)


@contextmanager
def consuming(broker: RabbitmqTaskBroker, queue: str) -> Iterator[RabbitmqConsumer]:
    consumer = broker.consume(queue, prefetch=1000, timeout=60_000)
    assert isinstance(consumer, RabbitmqConsumer)
    try:
        yield consumer
    finally:
        with contextlib.suppress(BrokerConnectionError):
            consumer.close()  # type: ignore[no-untyped-call]  # Dramatiq's


def take(consumer: RabbitmqConsumer) -> MessageProxy:
    message = next(consumer)
    assert message is not None, "No message came."
    return message


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < deadline, "It did not come to pass."
        time.sleep(0.02)


def wait_for(broker: RabbitmqTaskBroker, queue: str, **counts: int) -> None:
    """Wait until the queue holds so many; acknowledgements are on their way for a moment."""
    eventually(
        lambda: all(
            getattr(broker.queue_state(queue), name) == count for name, count in counts.items()
        )
    )


def kill(broker: RabbitmqTaskBroker, queue: str, count: int, *, start: int = 0) -> None:
    """Let messages become dead letters; the number `i` dies at the second `i` of 1970."""
    for i in range(start, start + count):
        broker.enqueue(message_to(queue, i, retries=3, traceback="Traceback ..."))
    with consuming(broker, queue) as consumer:
        for _ in range(count):
            message = take(consumer)
            message.options |= {ERROR: "ValueError: no", DIED_AT: message.args[0] * 1000}
            consumer.nack(message)
    wait_for(broker, queue, waiting=0, dead=start + count)


def numbers(broker: RabbitmqTaskBroker, queue: str, limit: int = 100) -> list[Any]:
    return [letter.message.args[0] for letter in broker.dead_letters(queue, limit=limit)]


@contextmanager
def working(broker: RabbitmqTaskBroker) -> Iterator[Worker]:
    worker = Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(int(LIMIT * 1000))


# --- queues -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *((name, "x-queue-type") for name in ("", ".DQ", ".XQ")),
        *((name, "x-dead-letter-routing-key") for name in ("", ".DQ")),
        *((name, "x-dead-letter-strategy") for name in ("", ".DQ")),
        *((name, "x-delivery-limit") for name in ("", ".DQ", ".XQ")),
        *((name, "x-overflow") for name in ("", ".DQ")),
        (".XQ", "x-message-ttl"),
    ],
)
def test_queue_has_the_argument(
    broker: RabbitmqTaskBroker,
    connection: pika.BlockingConnection,
    queue: str,
    name: str,
    argument: str,
) -> None:
    """The server does not tell its arguments, but refuses others."""
    broker.declare_queue(queue, ensure=True)
    arguments = dict(broker.declarations(queue)[queue + name])
    connection.channel().queue_declare(queue + name, durable=True, arguments=arguments)
    del arguments[argument]
    with pytest.raises(ChannelClosedByBroker, match=f"inequivalent arg '{argument}'"):
        connection.channel().queue_declare(queue + name, durable=True, arguments=arguments)


def test_message_survives_many_restarts_of_workers(broker: RabbitmqTaskBroker, queue: str) -> None:
    """RabbitMQ 4 would bury it after 20 unless told otherwise."""
    broker.enqueue(message_to(queue))
    for _ in range(25):
        with consuming(broker, queue) as consumer:
            take(consumer)
    wait_for(broker, queue, waiting=1, dead=0)


def test_dead_letters_survive_many_looks(broker: RabbitmqTaskBroker, queue: str) -> None:
    kill(broker, queue, 1)
    for _ in range(25):
        assert numbers(broker, queue) == [0]


def test_enqueue_declares_a_queue_that_was_deleted(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str
) -> None:
    """Without confirmations the message would be lost, and nobody told."""
    broker.enqueue(message_to(queue))
    connection.channel().queue_delete(queue)
    broker.enqueue(message_to(queue))
    assert broker.queue_state(queue).waiting == 1


def test_queue_of_another_kind_is_named(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str
) -> None:
    connection.channel().queue_declare(queue, durable=True)

    async def publish() -> None:
        async with broker.open_publisher() as publisher:
            await publisher.publish([message_to(queue)])

    with pytest.raises(BrokerUnavailableError, match="inequivalent arg"):
        asyncio.run(publish())


# --- publishing -------------------------------------------------------------------------------


async def test_publish_keeps_the_order(broker: RabbitmqTaskBroker, queue: str) -> None:
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue, i) for i in range(500)])
        await publisher.publish([message_to(queue, i) for i in range(500, 1000)])
    with consuming(broker, queue) as consumer:
        assert [take(consumer).args[0] for _ in range(1000)] == list(range(1000))


async def test_published_messages_are_there_on_return(
    broker: RabbitmqTaskBroker, queue: str, signals: Signals
) -> None:
    messages = [message_to(queue, i) for i in range(10)]
    async with broker.open_publisher() as publisher:
        await publisher.publish(messages)
        assert broker.queue_state(queue).waiting == 10
    ids = [message.message_id for message in messages]
    assert signals.before == signals.after == ids


async def test_publish_to_several_queues(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str
) -> None:
    other = f"{queue}-other"
    try:
        async with broker.open_publisher() as publisher:
            await publisher.publish([message_to(queue), message_to(other), message_to(queue)])
        assert broker.queue_state(queue).waiting == 2
        assert broker.queue_state(other).waiting == 1
    finally:
        for name in broker.declarations(other):
            connection.channel().queue_delete(name)


async def test_publish_large_messages(broker: RabbitmqTaskBroker, queue: str) -> None:
    """They take several frames each."""
    text = "x" * 300_000
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue, text) for _ in range(5)])
    with consuming(broker, queue) as consumer:
        assert all(take(consumer).args == (text,) for _ in range(5))


async def test_large_batch_may_take_longer(
    monkeypatch: pytest.MonkeyPatch, broker: RabbitmqTaskBroker, queue: str
) -> None:
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        monkeypatch.setattr(rabbitmq_publisher, "ANSWER_SECONDS", 0.0)
        monkeypatch.setattr(rabbitmq_publisher, "BYTES_PER_SECOND", 100)
        await publisher.publish([message_to(queue, "x" * 1000)])


async def test_nothing_to_publish_needs_no_server(remote: RabbitmqTaskBroker, line: Relay) -> None:
    await line.stop()
    async with remote.open_publisher() as publisher:
        await publisher.publish([])


async def test_publish_to_a_deleted_queue_fails_once(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str, signals: Signals
) -> None:
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        connection.channel().queue_delete(queue)
        with pytest.raises(BrokerUnavailableError, match="NO_ROUTE"):
            await publisher.publish([message_to(queue)])
        assert len(signals.after) == 1
        await publisher.publish([message_to(queue)])
    assert broker.queue_state(queue).waiting == 1


async def test_publisher_outlives_the_connection(
    remote: RabbitmqTaskBroker, broker: RabbitmqTaskBroker, line: Relay, queue: str
) -> None:
    async with remote.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        await line.stop()
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError) as caught:
                await publisher.publish([message_to(queue)])
            assert PASSWORD not in str(caught.value)
            assert str(caught.value).startswith("RabbitMQ cannot be used: ")
        await line.start()
        await publisher.publish([message_to(queue)])
    assert broker.queue_state(queue).waiting == 2


@pytest.mark.parametrize(
    ("is_connected", "count"),
    [(False, 1), (True, 1), (True, 100)],
    ids=["as we connect", "later", "with much in the buffers"],
)
async def test_server_that_hangs(
    remote: RabbitmqTaskBroker,
    line: Relay,
    queue: str,
    *,
    lose_patience: Lose,
    is_connected: bool,
    count: int,
) -> None:
    before = asyncio.all_tasks()
    async with remote.open_publisher() as publisher:
        if is_connected:
            await publisher.publish([message_to(queue)])
        line.freeze()
        lose_patience()
        with pytest.raises(BrokerUnavailableError, match="no answer in time"):
            await publisher.publish([message_to(queue, "x" * 250_000)] * count)
    left = [task for task in asyncio.all_tasks() - before if "aiormq" in repr(task)]
    if left:  # one that ends as the socket does, which is dropped
        await asyncio.wait(left, timeout=LIMIT)
    assert [task for task in left if not task.done()] == []


async def test_closing_does_not_wait_for_a_server_that_hangs(
    remote: RabbitmqTaskBroker, line: Relay, queue: str, lose_patience: Lose
) -> None:
    async with asyncio.timeout(LIMIT), remote.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        line.freeze()
        lose_patience()


async def test_cancelled_publication_leaves_the_others_alone(
    broker: RabbitmqTaskBroker, queue: str
) -> None:
    async with broker.open_publisher() as publisher:
        for i in range(20):
            batches = [
                asyncio.create_task(publisher.publish([message_to(queue)] * 50)) for _ in range(2)
            ]
            await asyncio.sleep(i / 1000)
            batches[0].cancel()
            await asyncio.wait(batches)
            assert batches[1].exception() is None
    assert broker.queue_state(queue).waiting >= 20 * 50


async def test_publication_can_be_cancelled(
    remote: RabbitmqTaskBroker, line: Relay, queue: str
) -> None:
    async with remote.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        line.freeze()
        publication = asyncio.create_task(publisher.publish([message_to(queue)]))
        await asyncio.sleep(0.1)
        publication.cancel()
        await asyncio.wait([publication], timeout=LIMIT)
        assert publication.cancelled()
        await line.stop()
        await line.start()
        with contextlib.suppress(BrokerUnavailableError):  # it may not know yet
            await publisher.publish([message_to(queue)])
        await publisher.publish([message_to(queue)])


# --- the server is away -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda broker, _: broker.ping(),
        lambda broker, queue: broker.queue_state(queue),
        lambda broker, queue: broker.dead_letters(queue, limit=10),
        lambda broker, queue: broker.requeue_dead(queue),
        lambda broker, queue: broker.purge_dead(queue),
    ],
    ids=["ping", "queue_state", "dead_letters", "requeue_dead", "purge_dead"],
)
async def test_server_is_away(
    remote: RabbitmqTaskBroker,
    line: Relay,
    queue: str,
    ask: Callable[[RabbitmqTaskBroker, str], object],
) -> None:
    await asyncio.to_thread(ask, remote, queue)
    await line.stop()
    with pytest.raises(BrokerUnavailableError, match="RabbitMQ cannot be used: ") as caught:
        await asyncio.to_thread(ask, remote, queue)
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("guest:guest@127.0.0.1:1", "Connection refused"),
        ("guest:guest@nowhere.invalid:5672", "not known|resolution|no address"),
    ],
)
def test_wrong_address_is_told(address: str, reason: str) -> None:
    broker = RabbitmqTaskBroker(f"amqp://{address}", middleware=[])
    with pytest.raises(BrokerUnavailableError, match=reason):
        broker.ping()
    with pytest.raises(BrokerConnectionError, match=reason):
        broker.enqueue(message_to("default"))
    with pytest.raises(BrokerConnectionError, match=reason):
        broker.consume("default")
    with pytest.raises(BrokerConnectionError, match=reason):
        RabbitmqConsumer(broker, "default", 1, 1000)


def test_wrong_password_is_told(url: str) -> None:
    address = url.partition("@")[2]
    broker = RabbitmqTaskBroker(f"amqp://guest:mistaken@{address}", middleware=[])
    with pytest.raises(BrokerUnavailableError, match="ACCESS_REFUSED") as caught:
        broker.ping()
    assert "mistaken" not in str(caught.value)


def test_url_may_say_otherwise(url: str) -> None:
    broker = RabbitmqTaskBroker(f"{url}?heartbeat=33", middleware=[])
    (parameters,) = broker.parameters
    assert (parameters.heartbeat, parameters.blocked_connection_timeout) == (33, 5)
    broker.ping()


async def test_enqueue_finds_a_new_connection(
    remote: RabbitmqTaskBroker, line: Relay, queue: str
) -> None:
    def enqueue_here() -> None:  # in one thread, which has a connection of its own
        remote.enqueue(message_to(queue))

    with ThreadPoolExecutor(1) as thread:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(thread, enqueue_here)
        await line.stop()
        with pytest.raises(BrokerConnectionError):
            await loop.run_in_executor(thread, enqueue_here)
        await line.start()
        await loop.run_in_executor(thread, enqueue_here)


@pytest.mark.parametrize("fault", ["away", "hanging"])
async def test_close_without_a_server(
    remote: RabbitmqTaskBroker,
    line: Relay,
    queue: str,
    *,
    caplog: pytest.LogCaptureFixture,
    lose_patience: Lose,
    fault: str,
) -> None:
    await asyncio.to_thread(remote.enqueue, message_to(queue))
    if fault == "away":
        await line.stop()
    else:
        line.freeze()
    lose_patience()
    with caplog.at_level(logging.INFO):
        async with asyncio.timeout(LIMIT):
            await asyncio.to_thread(remote.close)
    assert caplog.records == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, signed by itself, with its key in the same file."""
    if not OPENSSL:
        pytest.skip("openssl makes the certificate")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [OPENSSL, "req", "-x509", "-days", "1", *key, *subject]
    subprocess.run([*command, "-keyout", file, "-out", f"{file}.crt"], check=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


async def test_tls(url: str, queue: str, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    parts = urlsplit(url)
    relay = Relay(lambda: asyncio.open_connection(parts.hostname, parts.port), tls=context)
    await relay.start()
    try:
        address = through(relay, url, "amqps")
        options = urlencode({"ssl_options": {"cafile": str(certificate)}})
        known = RabbitmqTaskBroker(f"{address}?{options}", middleware=[])
        async with known.open_publisher() as publisher:
            await publisher.publish([message_to(queue)])
        assert (await asyncio.to_thread(known.queue_state, queue)).waiting == 1
        stranger = RabbitmqTaskBroker(address, middleware=[])
        with pytest.raises(BrokerUnavailableError, match="certificate"):
            await asyncio.to_thread(stranger.ping)
        async with stranger.open_publisher() as publisher:
            with pytest.raises(BrokerUnavailableError, match="certificate"):
                await publisher.publish([message_to(queue)])
    finally:
        await relay.stop()


# --- consuming --------------------------------------------------------------------------------


def test_queue_state_counts(broker: RabbitmqTaskBroker, queue: str) -> None:
    assert broker.queue_state(queue) == EMPTY  # there is no queue yet
    kill(broker, queue, 2)
    broker.enqueue(message_to(queue))
    broker.enqueue(message_to(queue), delay=60_000)
    broker.enqueue(message_to(queue), delay=60_000)
    broker.enqueue(message_to(queue), delay=60_000)
    assert broker.queue_state(queue) == QueueState(1, 3, 2, oldest_seconds=None)


@pytest.mark.slow
def test_message_of_a_killed_worker_is_redelivered(
    broker: RabbitmqTaskBroker, url: str, queue: str
) -> None:
    sent = broker.enqueue(message_to(queue))
    worker = subprocess.Popen(
        [sys.executable, "-c", HANGING_WORKER, url, queue], stdout=subprocess.PIPE, text=True
    )
    with worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "False\n"
        finally:
            worker.kill()
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        assert message.message_id == sent.message_id
        assert broker.is_redelivered(message)
        consumer.ack(message)
    wait_for(broker, queue, waiting=0, dead=0)


@pytest.mark.parametrize("answer", ["ack", "nack"])
def test_answer_after_the_connection_broke_concerns_nobody_else(
    broker: RabbitmqTaskBroker, queue: str, answer: str
) -> None:
    """Dramatiq's own consumer takes it for an answer to the message that has the tag now."""
    for _ in range(2):
        broker.enqueue(message_to(queue))
    with consuming(broker, queue) as lost:
        message = take(lost)
    with consuming(broker, queue) as consumer:
        for _ in range(2):
            take(consumer)
        getattr(consumer, answer)(message)
    wait_for(broker, queue, waiting=2, dead=0)


def test_delayed_message_comes_later(broker: RabbitmqTaskBroker, queue: str) -> None:
    done: list[float] = []

    @dramatiq.actor(broker=broker, queue_name=queue, actor_name="act")
    def act() -> None:
        done.append(time.monotonic())

    with working(broker):
        started = time.monotonic()
        act.send_with_options(delay=500)
        eventually(lambda: bool(done))
    assert done[0] - started >= 0.5
    wait_for(broker, queue, waiting=0, delayed=0, dead=0)


def test_retries_end_among_the_dead_letters(broker: RabbitmqTaskBroker, queue: str) -> None:
    attempts: list[int] = []
    broker.add_middleware(Retries(max_retries=2, min_backoff=10, max_backoff=20))

    @dramatiq.actor(broker=broker, queue_name=queue, actor_name="act")
    def act() -> None:
        attempts.append(1)
        raise ValueError("no such luck")

    with working(broker):
        sent = act.send()
        wait_for(broker, queue, dead=1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert len(attempts) == 3
    assert letter.id == sent.message_id
    assert "no such luck" in letter.message.options["traceback"]
    assert letter.died_at is not None


def test_message_to_an_unknown_actor_dies(broker: RabbitmqTaskBroker, queue: str) -> None:
    broker.enqueue(message_to(queue, 1))
    with working(broker):
        wait_for(broker, queue, waiting=0, dead=1)
    assert numbers(broker, queue) == [1]


# --- dead letters -----------------------------------------------------------------------------


def test_dead_letter_tells_of_its_end(broker: RabbitmqTaskBroker, queue: str) -> None:
    kill(broker, queue, 1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.message.options[ERROR] == "ValueError: no"
    assert letter.message.options["traceback"] == "Traceback ..."
    assert letter.died_at is not None
    assert letter.died_at.timestamp() == 0


def test_burial_finds_a_new_connection(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str
) -> None:
    """The server closes the one of a thread that sends nothing for a while."""
    broker.enqueue(message_to(queue))
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        message.options[ERROR] = "ValueError: no"
        broker.connection.close()
        connection.channel().queue_delete(xq_name(queue))  # as an operator may, to be rid of them
        consumer.nack(message)
    wait_for(broker, queue, waiting=0, dead=1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.message.options[ERROR] == "ValueError: no"


def test_dead_letter_that_cannot_be_written_is_buried_as_it_came(
    broker: RabbitmqTaskBroker, queue: str
) -> None:
    broker.enqueue(message_to(queue, 7))
    started = time.time()
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        message.options["what"] = object()
        consumer.nack(message)
    wait_for(broker, queue, waiting=0, dead=1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.message.args == (7,)
    assert letter.died_at is not None
    assert letter.died_at.timestamp() == pytest.approx(started, abs=LIMIT)


async def test_message_that_cannot_be_buried_comes_again(
    remote: RabbitmqTaskBroker, broker: RabbitmqTaskBroker, line: Relay, queue: str
) -> None:
    loop = asyncio.get_running_loop()
    broker.enqueue(message_to(queue))

    def reject_while_away() -> None:
        with consuming(remote, queue) as consumer:
            message = take(consumer)
            asyncio.run_coroutine_threadsafe(line.stop(), loop).result()
            with contextlib.suppress(BrokerConnectionError):  # if it is noticed so soon
                consumer.nack(message)

    await asyncio.to_thread(reject_while_away)
    wait_for(broker, queue, waiting=1, dead=0)


async def test_worker_outlives_the_connection(
    monkeypatch: pytest.MonkeyPatch, remote: RabbitmqTaskBroker, line: Relay, queue: str
) -> None:
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.1)
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.1)
    done: list[int] = []

    @dramatiq.actor(broker=remote, queue_name=queue, actor_name="act")
    def act(number: int) -> None:
        time.sleep(0.05)
        done.append(number)

    def interrupt() -> None:
        for change in (line.stop, line.start):
            asyncio.run_coroutine_threadsafe(change(), loop).result()

    def send_and_wait() -> None:
        with working(remote):
            for number in range(20):
                act.send(number)
                if number == 10:
                    interrupt()
            eventually(lambda: set(done) == set(range(20)))
            wait_for(remote, queue, waiting=0, delayed=0, dead=0)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(send_and_wait)


def test_body_that_is_no_message_dies(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str
) -> None:
    broker.declare_queue(queue, ensure=True)
    connection.channel().basic_publish("", queue, b"\xff garbage")
    with consuming(broker, queue) as consumer:
        assert next(consumer) is None
    wait_for(broker, queue, waiting=0, dead=1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.message.actor_name == "?"
    assert "garbage" in letter.message.options[ERROR]
    assert broker.requeue_dead(queue) == 0
    assert broker.queue_state(queue).dead == 1
    assert broker.purge_dead(queue, [letter.id]) == 1
    assert broker.queue_state(queue) == EMPTY


def test_newest_dead_letters_come_first(broker: RabbitmqTaskBroker, queue: str) -> None:
    """However often one looks: the server mixes up those that are given back."""
    kill(broker, queue, 60)
    for _ in range(3):
        assert numbers(broker, queue, limit=5) == [59, 58, 57, 56, 55]
    assert len(broker.dead_letters(queue, limit=1000)) == 60
    assert broker.queue_state(queue).dead == 60


def test_more_dead_letters_than_a_channel_may_hold(
    monkeypatch: pytest.MonkeyPatch, broker: RabbitmqTaskBroker, queue: str
) -> None:
    monkeypatch.setattr(rabbitmq, "MAX_PREFETCH", 3)
    kill(broker, queue, 8)
    assert numbers(broker, queue) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert broker.requeue_dead(queue) == 8


def test_requeued_message_lives_as_before(broker: RabbitmqTaskBroker, queue: str) -> None:
    kill(broker, queue, 1)
    (letter,) = broker.dead_letters(queue, limit=1)
    assert broker.requeue_dead(queue) == 1
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        assert (message.message_id, message.args, message.options) == (letter.id, (0,), {})
        assert not broker.is_redelivered(message)


def test_delayed_message_is_requeued_to_its_queue(broker: RabbitmqTaskBroker, queue: str) -> None:
    """It was rejected as it waited for its time."""
    broker.enqueue(message_to(queue, 1), delay=60_000)
    with consuming(broker, dq_name(queue)) as consumer:
        consumer.nack(take(consumer))
    wait_for(broker, queue, delayed=0, dead=1)
    assert broker.requeue_dead(queue) == 1
    with consuming(broker, queue) as consumer:
        assert take(consumer).queue_name == queue


def test_some_are_requeued(broker: RabbitmqTaskBroker, queue: str) -> None:
    kill(broker, queue, 5)
    by_number = {each.message.args[0]: each.id for each in broker.dead_letters(queue, limit=9)}
    assert broker.requeue_dead(queue, [by_number[1], by_number[3], "unknown"]) == 2
    assert numbers(broker, queue) == [4, 2, 0]
    assert broker.queue_state(queue).waiting == 2
    assert broker.requeue_dead(queue, []) == 0


def test_some_are_purged(broker: RabbitmqTaskBroker, queue: str) -> None:
    kill(broker, queue, 5)
    by_number = {each.message.args[0]: each.id for each in broker.dead_letters(queue, limit=9)}
    assert broker.purge_dead(queue, [by_number[1], by_number[3], "unknown"]) == 2
    assert numbers(broker, queue) == [4, 2, 0]
    assert broker.purge_dead(queue) == 3
    assert broker.queue_state(queue) == EMPTY


def test_message_that_is_dead_twice_lives_once(broker: RabbitmqTaskBroker, queue: str) -> None:
    """Its worker was killed between its burial and its acknowledgement, and so the next died."""
    message = message_to(queue, 1)
    for _ in range(2):
        broker.enqueue(message)
    with consuming(broker, queue) as consumer:
        for _ in range(2):
            consumer.nack(take(consumer))
    wait_for(broker, queue, dead=2)
    assert broker.requeue_dead(queue) == 1
    assert broker.queue_state(queue) == QueueState(1, 0, 0, oldest_seconds=None)


def test_failed_requeue_loses_nothing(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str
) -> None:
    kill(broker, queue, 3)
    connection.channel().queue_delete(queue)
    with pytest.raises(BrokerUnavailableError, match="unroutable"):
        broker.requeue_dead(queue)
    wait_for(broker, queue, dead=3)
    assert numbers(broker, queue) == [2, 1, 0]


def test_concurrent_commands_take_turns(broker: RabbitmqTaskBroker, queue: str) -> None:
    kill(broker, queue, 40)
    with ThreadPoolExecutor(6) as threads:
        looks = [threads.submit(numbers, broker, queue) for _ in range(3)]
        revivals = [threads.submit(broker.requeue_dead, queue) for _ in range(3)]
        assert sorted(each.result() for each in revivals) == [0, 0, 40]
        assert {len(each.result()) for each in looks} <= {0, 40}
    assert broker.queue_state(queue) == QueueState(40, 0, 0, oldest_seconds=None)


def test_command_does_not_wait_for_ever(
    broker: RabbitmqTaskBroker,
    connection: pika.BlockingConnection,
    queue: str,
    lose_patience: Lose,
) -> None:
    lose_patience()
    connection.channel().queue_declare(f"{queue}.XQ.lock", exclusive=True)
    with pytest.raises(BrokerUnavailableError, match=f"{queue}.XQ.lock"):
        broker.dead_letters(queue, limit=1)


def test_what_a_killed_command_had_taken_is_there(
    broker: RabbitmqTaskBroker, connection: pika.BlockingConnection, queue: str
) -> None:
    kill(broker, queue, 3)
    channel = connection.channel()
    for _ in range(2):
        channel.basic_get(xq_name(queue))
    assert broker.queue_state(queue).dead == 1
    channel.close()
    wait_for(broker, queue, dead=3)
    assert numbers(broker, queue) == [2, 1, 0]


@pytest.mark.slow
def test_ten_thousand_dead_letters_are_listed(broker: RabbitmqTaskBroker, queue: str) -> None:
    async def bury() -> None:
        letters = [message_to(xq_name(queue), i, died_at=i) for i in range(10_000)]
        async with broker.open_publisher() as publisher:
            for i in range(0, len(letters), 500):
                await publisher.publish(letters[i : i + 500])

    asyncio.run(bury())
    assert numbers(broker, queue, limit=20) == list(range(9_999, 9_979, -1))
    assert broker.purge_dead(queue) == 10_000
