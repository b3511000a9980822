"""A relay whose process is killed: `python -m tests.test_tasks.killed_relay before|after`."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from dramatiq import Message

from src.core.config import get_settings
from src.db.session import open_database
from src.tasks.broker import create_broker
from src.tasks.engine.brokers.base import Publisher
from src.tasks.engine.relay import Relay


class KillingPublisher:
    def __init__(self, publisher: Publisher, when: str) -> None:
        self._publisher = publisher
        self._when = when

    async def publish(self, messages: Sequence[Message[Any]]) -> None:
        if self._when == "after":
            await self._publisher.publish(messages)
        os.kill(os.getpid(), signal.SIGKILL)


async def relay(when: str) -> None:
    settings = get_settings()
    async with (
        open_database(settings.database_url, pool_size=1) as database,
        create_broker(settings).open_publisher() as publisher,
    ):
        await Relay(database, KillingPublisher(publisher, when)).sweep()


if __name__ == "__main__":
    asyncio.run(relay(sys.argv[1]))
