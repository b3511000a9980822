"""Sends what is in the outbox: at once when this process commits, and what others left behind."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import structlog
from dramatiq import Message
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from src.core.config import Settings
from src.db import Database, open_database
from src.db.session import DatabaseUnavailableError
from src.repositories.sql import set_idle_in_transaction_timeout
from src.repositories.task import OutboxRepository
from src.tasks.engine.brokers.base import BrokerUnavailableError, Publisher, TaskBroker
from src.tasks.engine.metrics import SENT
from src.tasks.outbox import HAS_MESSAGES

log = structlog.get_logger(__name__)

BATCH = 500
POLL_SECONDS = 1.0
FREEZE_SECONDS = 60.0
STOP_SECONDS = 5.0


class Relay:
    """Any number may run: each message is taken by one of them.

    It is sent before the transaction that takes it commits, so that it is sent twice rather than
    lost if the process dies in between.
    """

    def __init__(self, database: Database, publisher: Publisher) -> None:
        self._database = database
        self._publisher = publisher
        self._woken = asyncio.Event()
        self._is_stopping = False
        self._is_waiting_for_servers = False

    def wake(self) -> None:
        self._woken.set()

    def note_commit(self, session: Session) -> None:
        if not session.in_nested_transaction() and session.info.pop(HAS_MESSAGES, False):
            self.wake()

    def stop(self) -> None:
        """Send what is there, and let `run` return."""
        self._is_stopping = True
        self.wake()

    async def run(self) -> None:
        while True:
            self._woken.clear()
            is_stopping = self._is_stopping  # as of before the last sweep
            await self._sweep_all()
            if is_stopping:
                return
            if self._is_waiting_for_servers:
                await asyncio.sleep(POLL_SECONDS)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), POLL_SECONDS)

    async def _sweep_all(self) -> None:
        try:
            while await self.sweep() == BATCH:
                pass
        except (BrokerUnavailableError, DatabaseUnavailableError, SQLAlchemyError) as error:
            self._note_outage(error)
        except Exception:
            # Whatever it is, the outbox must be swept on; and not in a hurry.
            log.exception("outbox_failed")
            self._is_waiting_for_servers = True
        else:
            self._note_recovery()

    async def sweep(self) -> int:
        """Send what is due, BATCH messages at most, and return how many.

        Raises BrokerUnavailableError, DatabaseUnavailableError or SQLAlchemyError; the messages
        are still in the outbox then.
        """
        async with self._database.transaction() as db:
            bodies = await OutboxRepository(db).take(limit=BATCH)
            if bodies:
                await set_idle_in_transaction_timeout(db, seconds=FREEZE_SECONDS)
                await self._publisher.publish([Message.decode(body) for body in bodies])
        SENT.inc(len(bodies))
        return len(bodies)

    def _note_outage(self, error: Exception) -> None:
        if not self._is_waiting_for_servers:
            self._is_waiting_for_servers = True
            log.warning("outbox_waits", cause=str(error))

    def _note_recovery(self) -> None:
        if self._is_waiting_for_servers:
            self._is_waiting_for_servers = False
            log.info("outbox_goes_on")


@asynccontextmanager
async def open_relay(settings: Settings, broker: TaskBroker) -> AsyncGenerator[Relay]:
    """Send in the background what this process commits to the outbox, until the block ends."""
    async with (
        # A connection of its own: when requests have taken all others, it can still send.
        open_database(settings.database_url, pool_size=1) as database,
        broker.open_publisher() as publisher,
    ):
        relay = Relay(database, publisher)
        event.listen(Session, "after_commit", relay.note_commit)
        running = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            event.remove(Session, "after_commit", relay.note_commit)
            relay.stop()
            await asyncio.wait([running], timeout=STOP_SECONDS)
            running.cancel()
            await asyncio.wait([running])
