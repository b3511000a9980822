"""Checks of the broker and the workers, for `python cli.py doctor`."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from src.core.config import Settings
from src.doctor import CheckError, CheckSkippedError, describe_port
from src.tasks.broker import broker as declared
from src.tasks.broker import create_broker
from src.tasks.engine.actors import load_actors
from src.tasks.engine.brokers.base import BrokerUnavailableError, TaskBroker

START = "Start one with `python cli.py worker`."
T = TypeVar("T")


async def check_broker(settings: Settings) -> str:
    try:
        return await _use_broker(settings, _examine)
    except BrokerUnavailableError as error:
        raise CheckError(error) from error


async def check_worker(settings: Settings) -> str:
    try:
        is_running = await _use_broker(settings, _has_workers)
    except BrokerUnavailableError:
        raise CheckSkippedError("It needs the broker.") from None
    if is_running:
        return "At least one is running."
    if settings.is_deployed:
        raise CheckError("None is running", START)
    raise CheckSkippedError(f"None is running. {START}")


async def check_health_port(settings: Settings) -> str | None:
    if settings.DRAMATIQ_HEALTH_PORT is None:
        return None
    return await describe_port(settings, "DRAMATIQ_HEALTH_PORT", "/health/live")


async def _use_broker(settings: Settings, use: Callable[[TaskBroker], T]) -> T:
    with closing(create_broker(settings)) as broker:
        return await asyncio.to_thread(use, broker)


def _examine(broker: TaskBroker) -> str:
    broker.ping()
    if policy := broker.eviction_policy():
        raise CheckError(f"The server may delete messages: {policy}", "Set noeviction.")
    states = {name: broker.queue_state(name) for name in sorted(_queues())}
    texts = [f"{name}: {it.waiting} waiting, {it.dead} dead" for name, it in states.items()]
    return "; ".join(texts) or "It responds. There are no actors yet."


def _has_workers(broker: TaskBroker) -> bool:
    broker.ping()
    if not _queues():
        raise CheckSkippedError("There are no actors yet.")
    return any(broker.has_workers(name) for name in _queues())


def _queues() -> set[str]:
    load_actors()
    return declared.get_declared_queues()


CHECKS = {"broker": check_broker, "worker": check_worker, "worker port": check_health_port}
