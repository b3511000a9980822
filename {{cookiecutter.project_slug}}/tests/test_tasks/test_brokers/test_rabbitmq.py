"""The RabbitMQ broker: queues, publisher confirms, a server that hangs, dead letters."""

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
from tests.proxy import Proxy
from tests.test_tasks.conftest import Server
from tests.test_tasks.test_brokers.conftest import MakeBroker
from tests.test_tasks.test_brokers.messages import (
    add_dead_letters,
    consuming,
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
    """A connection that changes the queues without the broker."""
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        yield connection


@pytest.fixture
def broker_behind_proxy(
    server: Server, make_broker: MakeBroker, broker_proxy: Proxy
) -> RabbitmqTaskBroker:
    """A broker behind the proxy. Its heartbeats are too rare to detect that the server hangs."""
    broker: RabbitmqTaskBroker = make_broker(
        url=f"{server.via(broker_proxy.port).url}?heartbeat=600"
    )
    return broker


@pytest.fixture
def shorten_timeouts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it after the steps that may be slow on a busy machine."""

    def shorten_timeouts() -> None:
        for module in (rabbitmq, rabbitmq_publisher):
            monkeypatch.setattr(module, "RESPONSE_SECONDS", 0.3)
            monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
        monkeypatch.setattr(rabbitmq_publisher, "BYTES_PER_SECOND", 1e9)

    return shorten_timeouts


# --- queues -----------------------------------------------------------------------------------


def test_queues_have_the_arguments(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    """RabbitMQ does not show the arguments, but rejects a declaration without one of them."""
    broker.declare_queue(queue, ensure=True)
    for name, arguments in broker.declarations(queue).items():
        declare = partial(operator.channel().queue_declare, name, durable=True)
        declare(arguments=dict(arguments))
        for lacking in arguments.keys() - {"x-consumer-timeout"}:  # older servers ignore it
            others = {key: value for key, value in arguments.items() if key != lacking}
            with pytest.raises(ChannelClosedByBroker, match=f"inequivalent arg '{lacking}'"):
                operator.channel().queue_declare(name, durable=True, arguments=others)


def test_namespace_none_keeps_the_names_of_queues(
    server: Server, operator: pika.BlockingConnection, queue: str
) -> None:
    """Services of releases without namespaces have such queues."""
    broker = server.module.create(server.url, "none")
    broker.enqueue(message_to(queue))
    declared = operator.channel().queue_declare(queue, passive=True)
    assert declared.method.message_count == 1
    broker.close()


def test_message_survives_more_deliveries_than_the_server_allows_by_default(
    broker: RabbitmqTaskBroker, queue: str
) -> None:
    """Each restart of a worker, and each command that reads dead letters, is a delivery."""
    broker.enqueue(message_to(queue))
    for _ in range(25):
        with consuming(broker, queue) as consumer:
            take(consumer)
    wait_for(broker, queue, waiting=1, dead=0)


async def test_queue_that_was_deleted_is_declared_again(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    """A publisher gets an error, because its message would be lost."""
    broker.enqueue(message_to(queue))
    operator.channel().queue_delete(broker.server_name(queue))
    broker.enqueue(message_to(queue))
    assert broker.queue_state(queue).waiting == 1
    async with broker.open_publisher() as publisher:
        await publisher.publish([message_to(queue)])
        operator.channel().queue_delete(broker.server_name(queue))
        with pytest.raises(BrokerUnavailableError, match="NO_ROUTE"):
            await publisher.publish([message_to(queue)])
        await publisher.publish([message_to(queue)])
    assert broker.queue_state(queue).waiting == 1


async def test_queue_of_another_type_is_rejected(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    operator.channel().queue_declare(broker.server_name(queue), durable=True)
    async with broker.open_publisher() as publisher:
        with pytest.raises(BrokerUnavailableError, match="inequivalent arg"):
            await publisher.publish([message_to(queue)])


# --- a server that hangs or is unavailable ----------------------------------------------------


@pytest.mark.parametrize(
    ("is_connected", "count"),
    [(False, 1), (True, 1), (True, 100)],
    ids=["connecting", "connected", "full buffers"],
)
async def test_publisher_does_not_wait_for_a_server_that_hangs(
    broker_behind_proxy: RabbitmqTaskBroker,
    broker_proxy: Proxy,
    queue: str,
    *,
    shorten_timeouts: Callable[[], None],
    is_connected: bool,
    count: int,
) -> None:
    async with broker_behind_proxy.open_publisher() as publisher:
        if is_connected:
            await publisher.publish([message_to(queue)])
        broker_proxy.freeze()
        shorten_timeouts()
        with pytest.raises(BrokerUnavailableError, match="no response in time"):
            await publisher.publish([message_to(queue, "x" * 250_000)] * count)


async def test_closing_does_not_wait_for_a_server_that_hangs(
    broker_behind_proxy: RabbitmqTaskBroker,
    broker_proxy: Proxy,
    queue: str,
    *,
    shorten_timeouts: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await asyncio.to_thread(broker_behind_proxy.enqueue, message_to(queue))
    async with asyncio.timeout(LIMIT):
        async with broker_behind_proxy.open_publisher() as publisher:
            await publisher.publish([message_to(queue)])
            broker_proxy.freeze()
            shorten_timeouts()
        await asyncio.to_thread(broker_behind_proxy.close)
    assert caplog.records == []


async def test_large_batch_has_more_time(
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
async def test_connection_error_gives_the_cause_without_the_password(
    server: Server, make_broker: MakeBroker, address: str, reason: str
) -> None:
    broker = make_broker(f"amqp://{address.format(server.url.partition('@')[2])}?heartbeat=33")
    assert broker.parameters[0].heartbeat == 33  # from the URL
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
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    if not OPENSSL:
        pytest.skip("needs openssl for a certificate")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [OPENSSL, "req", "-x509", "-days", "1", *key, *subject]
    subprocess.run([*command, "-keyout", file, "-out", f"{file}.crt"], check=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


async def test_tls(server: Server, make_broker: MakeBroker, queue: str, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    proxy = Proxy(partial(server.module.connect, server.url), tls=context)
    await proxy.start()
    try:
        address = server.via(proxy.port).url.replace("amqp:", "amqps:")
        options = urlencode({"ssl_options": {"cafile": str(certificate)}})
        known, unknown = make_broker(url=f"{address}?{options}"), make_broker(url=address)
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


@pytest.mark.parametrize("method", ["ack", "nack"])
def test_message_of_an_earlier_connection_is_not_acknowledged(
    broker: RabbitmqTaskBroker, queue: str, method: str
) -> None:
    """Dramatiq's consumer would acknowledge another message with the same delivery tag."""
    for _ in range(2):
        broker.enqueue(message_to(queue))
    with consuming(broker, queue) as lost:
        message = take(lost)
    with consuming(broker, queue) as consumer:
        for _ in range(2):
            take(consumer)
        getattr(consumer, method)(message)
    wait_for(broker, queue, waiting=2, dead=0)


def test_dead_letter_is_written_on_a_new_connection(
    broker: RabbitmqTaskBroker, operator: pika.BlockingConnection, queue: str
) -> None:
    """RabbitMQ closes the connection of an idle thread."""
    broker.enqueue(message_to(queue))
    with consuming(broker, queue) as consumer:
        message = take(consumer)
        message.options[ERROR] = "ValueError: no"
        broker.connection.close()
        operator.channel().queue_delete(broker.server_name(xq_name(queue)))  # as an operator may do
        consumer.nack(message)
    wait_for(broker, queue, waiting=0, dead=1)
    (letter,) = broker.dead_letters(queue, limit=10)
    assert letter.message.options[ERROR] == "ValueError: no"


async def test_message_that_cannot_become_a_dead_letter_is_redelivered(
    broker_behind_proxy: RabbitmqTaskBroker,
    broker: RabbitmqTaskBroker,
    broker_proxy: Proxy,
    queue: str,
) -> None:
    loop = asyncio.get_running_loop()
    broker.enqueue(message_to(queue))

    def reject_during_outage() -> None:
        with consuming(broker_behind_proxy, queue) as consumer:
            message = take(consumer)
            asyncio.run_coroutine_threadsafe(broker_proxy.stop(), loop).result()
            with suppress(BrokerConnectionError):  # if the outage is noticed so soon
                consumer.nack(message)

    await asyncio.to_thread(reject_during_outage)
    wait_for(broker, queue, waiting=1, dead=0)


# --- dead letters -----------------------------------------------------------------------------


def test_more_dead_letters_than_the_prefetch_limit(
    monkeypatch: pytest.MonkeyPatch, broker: RabbitmqTaskBroker, queue: str
) -> None:
    monkeypatch.setattr(rabbitmq, "MAX_PREFETCH", 3)
    add_dead_letters(broker, queue, 8)
    assert numbers(broker, queue) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert broker.requeue_dead(queue) == 8


def test_message_with_two_dead_letters_is_requeued_once(
    broker: RabbitmqTaskBroker, queue: str
) -> None:
    """This happens if a worker is killed between the dead letter and the acknowledgement."""
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
    add_dead_letters(broker, queue, 3)
    operator.channel().queue_delete(broker.server_name(queue))
    with pytest.raises(BrokerUnavailableError, match="unroutable"):
        broker.requeue_dead(queue)
    wait_for(broker, queue, dead=3)
    assert numbers(broker, queue) == [2, 1, 0]


def test_concurrent_commands_wait_for_each_other(broker: RabbitmqTaskBroker, queue: str) -> None:
    add_dead_letters(broker, queue, 40)
    with ThreadPoolExecutor(6) as threads:
        listed = [threads.submit(numbers, broker, queue) for _ in range(3)]
        requeued = [threads.submit(broker.requeue_dead, queue) for _ in range(3)]
        assert sorted(each.result() for each in requeued) == [0, 0, 40]
        assert {len(each.result()) for each in listed} <= {0, 40}
    assert broker.queue_state(queue) == QueueState(40, 0, 0, oldest_seconds=None)
