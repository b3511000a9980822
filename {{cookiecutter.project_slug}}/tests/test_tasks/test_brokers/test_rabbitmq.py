"""RabbitMQ as the broker: its queues, confirmations, a server that hangs, dead letters."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pika
import pytest
from dramatiq.common import xq_name
from dramatiq.errors import BrokerConnectionError
from pika.exceptions import ChannelClosedByBroker

from src.tasks.engine.brokers import rabbitmq, rabbitmq_publisher
from src.tasks.engine.brokers.base import ERROR, BrokerUnavailableError, QueueState
from src.tasks.engine.brokers.rabbitmq import RabbitmqConsumer, RabbitmqTaskBroker
from tests.proxy import Relay
from tests.test_tasks.conftest import Server
from tests.test_tasks.test_brokers.conftest import Make
from tests.test_tasks.test_brokers.messages import (
    consuming,
    kill,
    message_to,
    numbers,
    take,
    wait_for,
)
from tests.test_tasks.workers import LIMIT

OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.parametrize("server", ["rabbitmq"], indirect=True)


@pytest.fixture
def operator(server: Server) -> Iterator[pika.BlockingConnection]:
    """Works on the queues past the broker."""
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        yield connection


@pytest.fixture
def broker_behind_proxy(server: Server, make: Make, broker_proxy: Relay) -> RabbitmqTaskBroker:
    """A broker behind the proxy; with so rare heartbeats they do not show that the server hangs."""
    broker: RabbitmqTaskBroker = make(url=f"{server.via(broker_proxy.port).url}?heartbeat=600")
    return broker


@pytest.fixture
def wait_briefly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it once the test has what may take its time on a busy machine."""

    def wait_briefly() -> None:
        for module in (rabbitmq, rabbitmq_publisher):
            monkeypatch.setattr(module, "RESPONSE_SECONDS", 0.3)
            monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
        monkeypatch.setattr(rabbitmq_publisher, "BYTES_PER_SECOND", 1e9)

    return wait_briefly


# --- queues -----------------------------------------------------------------------------------


def test_queues_have_the_arguments(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    """The server does not show them, but refuses a declaration that lacks one."""
    broker.declare_queue(queue, ensure=True)
    for name, arguments in broker.declarations(queue).items():
        declare = partial(operator.channel().queue_declare, name, durable=True)
        declare(arguments=dict(arguments))
        for lacking in arguments.keys() - {"x-consumer-timeout"}:  # older servers do not know it
            others = {key: value for key, value in arguments.items() if key != lacking}
            with pytest.raises(ChannelClosedByBroker, match=f"inequivalent arg '{lacking}'"):
                operator.channel().queue_declare(name, durable=True, arguments=others)


def test_message_survives_more_deliveries_than_the_server_allows_by_default(
    broker: RabbitmqTaskBroker, queue: str
) -> None:
    """Each restart of a worker is one, and each look at dead letters."""
    broker.enqueue(message_to(queue))
    for _ in range(25):
        with consuming(broker, queue) as consumer:
            take(consumer)
    wait_for(broker, queue, waiting=1, dead=0)


async def test_queue_that_was_deleted_is_declared_again(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    """A publisher hears of it: its message would be lost."""
    broker.enqueue(message_to(queue))
    operator.channel().queue_delete(queue)
    broker.enqueue(message_to(queue))
    assert broker.queue_state(queue).waiting == 1
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        operator.channel().queue_delete(queue)
        with pytest.raises(BrokerUnavailableError, match="NO_ROUTE"):
            await publisher.publish([message_to(queue)])
        await publisher.publish([message_to(queue)])
    assert broker.queue_state(queue).waiting == 1


async def test_queue_of_another_kind_is_refused(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    operator.channel().queue_declare(queue, durable=True)
    async with broker.open_publisher() as publisher:
        with pytest.raises(BrokerUnavailableError, match="inequivalent arg"):
            await publisher.publish([message_to(queue)])


# --- a server that hangs, or is not there -----------------------------------------------------


@pytest.mark.parametrize(
    ("is_connected", "count"),
    [(False, 1), (True, 1), (True, 100)],
    ids=["as we connect", "later", "with much in the buffers"],
)
async def test_publisher_does_not_wait_for_a_server_that_hangs(
    broker_behind_proxy: RabbitmqTaskBroker,
    broker_proxy: Relay,
    queue: str,
    *,
    wait_briefly: Callable[[], None],
    is_connected: bool,
    count: int,
) -> None:
    async with broker_behind_proxy.open_publisher() as publisher:
        if is_connected:
            await publisher.publish([message_to(queue)])
        broker_proxy.freeze()
        wait_briefly()
        with pytest.raises(BrokerUnavailableError, match="no response in time"):
            await publisher.publish([message_to(queue, "x" * 250_000)] * count)


async def test_closing_does_not_wait_for_a_server_that_hangs(
    broker_behind_proxy: RabbitmqTaskBroker,
    broker_proxy: Relay,
    queue: str,
    *,
    wait_briefly: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await asyncio.to_thread(broker_behind_proxy.enqueue, message_to(queue))
    async with asyncio.timeout(LIMIT):
        async with broker_behind_proxy.open_publisher() as publisher:
            await publisher.publish([message_to(queue)])
            broker_proxy.freeze()
            wait_briefly()
        await asyncio.to_thread(broker_behind_proxy.close)
    assert caplog.records == []


async def test_large_batch_may_take_longer(
    monkeypatch: pytest.MonkeyPatch, broker: RabbitmqTaskBroker, queue: str
) -> None:
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        monkeypatch.setattr(rabbitmq_publisher, "RESPONSE_SECONDS", 0.0)
        monkeypatch.setattr(rabbitmq_publisher, "BYTES_PER_SECOND", 100)
        await publisher.publish([message_to(queue, "x" * 1000)])


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("guest:hunter2@127.0.0.1:1", "Connection refused"),
        ("guest:hunter2@nowhere.invalid:5672", "not known|resolution|no address"),
        ("guest:hunter2@{}", "ACCESS_REFUSED"),
    ],
    ids=["port", "host", "password"],
)
async def test_mistake_in_the_url_is_named_but_no_password(
    server: Server, make: Make, address: str, reason: str
) -> None:
    broker = make(f"amqp://{address.format(server.url.partition('@')[2])}?heartbeat=33")
    assert broker.parameters[0].heartbeat == 33  # as the URL has it
    async with broker.open_publisher() as publisher:
        with pytest.raises(BrokerUnavailableError, match=reason) as caught:
            await publisher.publish([message_to("default")])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(BrokerUnavailableError, match=reason) as caught:
        broker.ping()
    assert "hunter2" not in str(caught.value)
    for act in (
        lambda: broker.enqueue(message_to("default")),
        lambda: broker.consume("default"),
        lambda: RabbitmqConsumer(broker, "default", 1, 1000),
    ):
        with pytest.raises(BrokerConnectionError, match=reason):
            act()


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


async def test_tls(server: Server, make: Make, queue: str, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    proxy = Relay(partial(server.module.connect, server.url), tls=context)
    await proxy.start()
    try:
        address = server.via(proxy.port).url.replace("amqp:", "amqps:")
        options = urlencode({"ssl_options": {"cafile": str(certificate)}})
        known, unknown = make(url=f"{address}?{options}"), make(url=address)
        async with known.open_publisher() as publisher:
            await publisher.publish([message_to(queue)])
        assert (await asyncio.to_thread(known.queue_state, queue)).waiting == 1
        with pytest.raises(BrokerUnavailableError, match="certificate"):
            await asyncio.to_thread(unknown.ping)
        async with unknown.open_publisher() as publisher:
            with pytest.raises(BrokerUnavailableError, match="certificate"):
                await publisher.publish([message_to(queue)])
    finally:
        await proxy.stop()


# --- consuming --------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["ack", "nack"])
def test_message_of_an_earlier_connection_is_not_acknowledged(
    broker: RabbitmqTaskBroker, queue: str, answer: str
) -> None:
    """Dramatiq's own consumer acknowledges the message that has the number now."""
    for _ in range(2):
        broker.enqueue(message_to(queue))
    with consuming(broker, queue) as lost:
        message = take(lost)
    with consuming(broker, queue) as consumer:
        for _ in range(2):
            take(consumer)
        getattr(consumer, answer)(message)
    wait_for(broker, queue, waiting=2, dead=0)


def test_dead_letter_is_written_on_a_new_connection(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    """The server closes the one of a thread that sends nothing for a while."""
    broker.enqueue(message_to(queue))
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        message.options[ERROR] = "ValueError: no"
        broker.connection.close()
        operator.channel().queue_delete(xq_name(queue))  # as an operator may, to be rid of them
        consumer.nack(message)
    wait_for(broker, queue, waiting=0, dead=1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.message.options[ERROR] == "ValueError: no"


async def test_message_that_cannot_become_a_dead_letter_comes_again(
    broker_behind_proxy: RabbitmqTaskBroker,
    broker: RabbitmqTaskBroker,
    broker_proxy: Relay,
    queue: str,
) -> None:
    loop = asyncio.get_running_loop()
    broker.enqueue(message_to(queue))

    def reject_while_away() -> None:
        with consuming(broker_behind_proxy, queue) as consumer:
            message = take(consumer)
            asyncio.run_coroutine_threadsafe(broker_proxy.stop(), loop).result()
            with suppress(BrokerConnectionError):  # if it is noticed so soon
                consumer.nack(message)

    await asyncio.to_thread(reject_while_away)
    wait_for(broker, queue, waiting=1, dead=0)


# --- dead letters -----------------------------------------------------------------------------


def test_more_dead_letters_than_a_channel_may_hold(
    monkeypatch: pytest.MonkeyPatch, broker: RabbitmqTaskBroker, queue: str
) -> None:
    monkeypatch.setattr(rabbitmq, "MAX_PREFETCH", 3)
    kill(broker, queue, 8)
    assert numbers(broker, queue) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert broker.requeue_dead(queue) == 8


def test_message_that_is_dead_twice_is_requeued_once(
    broker: RabbitmqTaskBroker, queue: str
) -> None:
    """Its worker was killed before it acknowledged the message, and so the next one had it too."""
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
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    kill(broker, queue, 3)
    operator.channel().queue_delete(queue)
    with pytest.raises(BrokerUnavailableError, match="unroutable"):
        broker.requeue_dead(queue)
    wait_for(broker, queue, dead=3)
    assert numbers(broker, queue) == [2, 1, 0]


def test_commands_take_turns(broker: RabbitmqTaskBroker, queue: str) -> None:
    kill(broker, queue, 40)
    with ThreadPoolExecutor(6) as threads:
        looks = [threads.submit(numbers, broker, queue) for _ in range(3)]
        requeued = [threads.submit(broker.requeue_dead, queue) for _ in range(3)]
        assert sorted(each.result() for each in requeued) == [0, 0, 40]
        assert {len(each.result()) for each in looks} <= {0, 40}
    assert broker.queue_state(queue) == QueueState(40, 0, 0, oldest_seconds=None)
