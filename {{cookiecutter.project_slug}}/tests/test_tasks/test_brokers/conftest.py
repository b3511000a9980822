"""Fixtures for brokers without middleware."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from src.tasks.engine.brokers.base import TaskBroker
from tests.proxy import Proxy
from tests.test_tasks.conftest import Server

MakeBroker = Callable[..., Any]


@pytest.fixture
def make_broker(server: Server, queue: str) -> Iterator[MakeBroker]:
    """Create brokers for the test's queue. Each behaves as in a separate process."""
    made: list[TaskBroker] = []

    def make_broker(url: str = server.url) -> TaskBroker:
        broker: TaskBroker = server.module.create(url, queue)
        broker.declare_queue(queue)
        made.append(broker)
        return broker

    yield make_broker
    for broker in made:
        broker.close()


@pytest.fixture
def broker(make_broker: MakeBroker) -> Any:
    return make_broker()


@pytest.fixture
async def broker_behind_proxy(
    server: Server, make_broker: MakeBroker, broker_proxy: Proxy
) -> AsyncGenerator[Any]:
    """A broker behind the proxy."""
    broker_behind_proxy = make_broker(server.via(broker_proxy.port).url)
    yield broker_behind_proxy
    await asyncio.to_thread(broker_behind_proxy.close)
