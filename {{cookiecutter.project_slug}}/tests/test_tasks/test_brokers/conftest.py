"""Brokers on their own, without middleware."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from src.tasks.engine.brokers.base import TaskBroker
from tests.proxy import Relay
from tests.test_tasks.conftest import Server

Make = Callable[..., Any]


@pytest.fixture
def make(server: Server, queue: str) -> Iterator[Make]:
    """Make brokers of the test's queue, each as if in a process of its own."""
    made: list[TaskBroker] = []

    def make(url: str = server.url) -> TaskBroker:
        broker: TaskBroker = server.module.create(url, queue)
        broker.declare_queue(queue)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def broker(make: Make) -> Any:
    return make()


@pytest.fixture
async def broker_behind_proxy(
    server: Server, make: Make, broker_proxy: Relay
) -> AsyncGenerator[Any]:
    """A broker behind the proxy."""
    broker_behind_proxy = make(server.via(broker_proxy.port).url)
    yield broker_behind_proxy
    await asyncio.to_thread(broker_behind_proxy.close)
