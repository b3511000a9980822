"""The relay, which sends messages from the outbox to the broker.

Messages of this process are sent right after their commit. A poll finds delayed messages,
and messages that another process did not send.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from dramatiq import DecodeError, Message
from dramatiq.common import current_millis
from prometheus_client import Counter
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from src.core.config import Settings
from src.core.failures import Outage, describe
from src.db import Database, open_database
from src.db.session import DatabaseUnavailableError
from src.domain.task import TaskStatus, problem_of
from src.repositories.task import OutboxRepository, TaskRepository
from src.tasks.engine.brokers.base import (
    DIED_AT,
    ERROR,
    PATIENCE,
    UNREADABLE,
    BrokerUnavailableError,
    Publisher,
    TaskBroker,
    fault,
    in_bursts,
    read_message,
)
from src.tasks.outbox import HAS_MESSAGES

log = structlog.get_logger(__name__)

SENT = Counter("tasks_sent_total", "Messages sent from the outbox to the broker.")
# A backlog is sent in small batches with pauses, because the process also serves requests.
BATCH = 100
PAUSE_SECONDS = 0.005
POLL_SECONDS = 1.0
STOP_SECONDS = 5.0
ISOLATION_SECONDS = 5.0  # to find a message that the broker accepts, after it refused a batch
POSTPONE = timedelta(minutes=1)

Faults = Sequence[tuple[bytes, str]]  # messages that cannot be sent, each with the cause


class Relay:
    """Sends due messages in batches. Any number of relays can run at the same time.

    A message is sent before the transaction that deletes it commits. A process that dies in between
    causes a second delivery, not a lost message.

    A message that cannot be decoded becomes a dead letter. One that cannot be sent although others
    can, or that has a queue of another release, waits, and becomes a dead letter after PATIENCE.
    """

    def __init__(self, database: Database, broker: TaskBroker, publisher: Publisher) -> None:
        self._database = database
        self._broker = broker
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
                while await self.send_batch() == BATCH:  # noqa: ASYNC110 - this works, it does not wait
                    await asyncio.sleep(PAUSE_SECONDS)
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
        faults: Faults = ()
        async with self._database.transaction() as db:
            outbox = OutboxRepository(db)
            bodies = await outbox.take(limit=BATCH)
            if bodies:
                faults = await self._send(bodies)
            waiting = [each for each, cause in faults if not await self._set_aside(db, each, cause)]
            if waiting:
                await outbox.add_all(waiting, delay=POSTPONE)
        SENT.inc(len(bodies) - len(faults))
        return len(bodies)

    async def _send(self, bodies: Sequence[bytes]) -> Faults:
        queues = self._broker.get_declared_queues()
        messages: list[Message[Any]] = []
        faults: list[tuple[bytes, str]] = []
        async for body in in_bursts(bodies):
            try:
                message = Message.decode(body)
            except DecodeError as error:
                faults.append((body, fault(error)))
                continue
            if message.queue_name in queues:
                messages.append(message)
            else:
                faults.append((body, f"No actor uses the queue {message.queue_name}."))
        try:
            if messages:
                await self._publisher.publish(messages)
        except Exception as error:
            if len(messages) == 1:
                raise
            faults += await self._send_singly(messages, error)
        return faults

    async def _send_singly(self, messages: Sequence[Message[Any]], error: Exception) -> Faults:
        """Send the messages that the broker accepts. If it accepts none, raise the error."""
        await asyncio.to_thread(self._broker.ping)  # raises if the server is unavailable
        faults = []
        deadline = time.monotonic() + ISOLATION_SECONDS
        for count, message in enumerate(messages, 1):
            try:
                await self._publisher.publish([message])
            except Exception as cause:  # noqa: BLE001 - whatever it is, the others are sent
                faults.append((message.encode(), f"It cannot be sent: {describe(cause)}"))
            is_late = count == len(messages) or time.monotonic() > deadline
            if is_late and len(faults) == count:
                raise error
        return faults

    async def _set_aside(self, db: AsyncSession, body: bytes, cause: str) -> bool:
        """Make the message a dead letter. Return False if it waits in the outbox instead."""
        queues = self._broker.get_declared_queues()
        queue = min(queues, default="default")
        message = read_message(body, queue)
        if message.queue_name in queues:
            queue = message.queue_name
        if message.actor_name != UNREADABLE:
            if current_millis() - message.message_timestamp < PATIENCE:
                log.warning("outbox_message_postponed", task=message.message_id, cause=cause)
                return False
            body = message.copy(options={ERROR: cause, DIED_AT: current_millis()}).encode()
        try:
            await asyncio.to_thread(self._broker.add_dead_letter, queue, message.message_id, body)
        except BrokerUnavailableError as error:
            log.warning("outbox_message_postponed", task=message.message_id, cause=str(error))
            return False
        with suppress(ValueError):  # the id is not that of a task
            task_id, problem = UUID(message.message_id), problem_of(None)
            await TaskRepository(db).finish(task_id, TaskStatus.FAILED, problem=problem)
        log.error("outbox_message_rejected", task=message.message_id, cause=cause)
        return True


@asynccontextmanager
async def open_relay(settings: Settings, broker: TaskBroker) -> AsyncGenerator[Relay]:
    """Run a relay in the background until the block ends."""
    async with (
        # A separate connection, which requests cannot use up.
        open_database(settings.database_url, pool_size=1) as database,
        broker.open_publisher() as publisher,
    ):
        relay = Relay(database, broker, publisher)
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
