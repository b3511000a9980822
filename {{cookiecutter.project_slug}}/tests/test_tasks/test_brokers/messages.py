"""Helpers that work with messages on any broker."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import BrokerConnectionError

from src.tasks.engine.brokers.base import DIED_AT, ERROR, TaskBroker
from tests.test_tasks.workers import LIMIT


def message_to(queue: str, *args: Any, **options: Any) -> Message[Any]:
    return Message(queue, "act", args, {}, options)


@contextmanager
def consuming(broker: TaskBroker, queue: str) -> Iterator[Consumer]:
    consumer = broker.consume(queue, prefetch=1000, timeout=1000)
    try:
        yield consumer
    finally:
        with suppress(BrokerConnectionError):
            consumer.close()


def take(consumer: Consumer) -> MessageProxy:
    deadline = time.monotonic() + LIMIT
    while True:
        if message := next(consumer):
            return message
        assert time.monotonic() < deadline, "No message was delivered."


def wait_for(broker: TaskBroker, queue: str, **counts: int) -> None:
    """Wait until the queue has these counts, because an acknowledgement takes a moment."""
    deadline = time.monotonic() + LIMIT
    while not counts.items() <= vars(broker.queue_state(queue)).items():
        assert time.monotonic() < deadline, counts
        time.sleep(0.02)


def add_dead_letters(broker: TaskBroker, queue: str, count: int) -> None:
    """Add dead letters, numbered from 0, one after another."""
    for number in range(count):
        broker.enqueue(message_to(queue, number, retries=3, traceback="Traceback ..."))
    with consuming(broker, queue) as consumer:
        for _ in range(count):
            message = take(consumer)
            message.options |= {ERROR: "ValueError: no", DIED_AT: message.args[0] * 1000}
            consumer.nack(message)
            time.sleep(0.002)  # a broker may order dead letters by milliseconds
    wait_for(broker, queue, waiting=0, dead=count)


def numbers(broker: TaskBroker, queue: str, limit: int = 100) -> list[Any]:
    return [letter.message.args[0] for letter in broker.dead_letters(queue, limit=limit)]
