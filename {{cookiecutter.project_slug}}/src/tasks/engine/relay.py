"""The relay, which sends messages from the outbox to the broker.

Messages of this process are sent right after their commit. A poll finds delayed messages,
and messages that another process did not send.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import structlog
from dramatiq import Message
from prometheus_client import Counter
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from src.core.config import Settings
from src.core.failures import Outage
from src.db import Database, open_database
from src.db.session import DatabaseUnavailableError
from src.repositories.task import OutboxRepository
from src.tasks.engine.brokers.base import BrokerUnavailableError, Publisher, TaskBroker
from src.tasks.outbox import HAS_MESSAGES

log = structlog.get_logger(__name__)

SENT = Counter("tasks_sent_total", "Messages sent from the outbox to the broker.")
BATCH = 500
POLL_SECONDS = 1.0
STOP_SECONDS = 5.0


class Relay:
    """Sends due messages in batches. Any number of relays can run at the same time.

    A message is sent before the transaction that deletes it commits. A process that dies in between
    causes a second delivery, not a lost message.
    """

    def __init__(self, database: Database, publisher: Publisher) -> None:
        self._database = database
        self._publisher = publisher
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._outage = Outage("outbox_stalled", "outbox_recovered")

    def after_commit(self, session: Session) -> None:
        if not session.in_nested_transaction() and session.info.pop(HAS_MESSAGES, False):
            self._wake.set()

    def stop(self) -> None:
        """Let `run` send the messages that are due, and then return."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            is_last_round = self._is_stopping
            try:
                while await self.send_batch() == BATCH:
                    pass
            except (BrokerUnavailableError, DatabaseUnavailableError, SQLAlchemyError) as error:
                self._outage.begin(error)
            except Exception as error:
                # Continue after any error: this may be the only relay.
                log.exception("outbox_failed")
                self._outage.begin(error)
            else:
                self._outage.end()
            if is_last_round:
                return
            if self._outage.is_on:
                await asyncio.sleep(POLL_SECONDS)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)

    async def send_batch(self) -> int:
        """Send up to BATCH due messages, and return their number.

        Raises BrokerUnavailableError, DatabaseUnavailableError or SQLAlchemyError. The messages
        are then still in the outbox.
        """
        async with self._database.transaction() as db:
            bodies = await OutboxRepository(db).take(limit=BATCH)
            if bodies:
                await self._publisher.publish([Message.decode(body) for body in bodies])
        SENT.inc(len(bodies))
        return len(bodies)


@asynccontextmanager
async def open_relay(settings: Settings, broker: TaskBroker) -> AsyncGenerator[Relay]:
    """Run a relay in the background until the block ends."""
    async with (
        # A separate connection, which requests cannot use up.
        open_database(settings.database_url, pool_size=1) as database,
        broker.open_publisher() as publisher,
    ):
        relay = Relay(database, publisher)
        event.listen(Session, "after_commit", relay.after_commit)
        running = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            event.remove(Session, "after_commit", relay.after_commit)
            relay.stop()
            await asyncio.wait([running], timeout=STOP_SECONDS)
            running.cancel()
            await asyncio.wait([running])
