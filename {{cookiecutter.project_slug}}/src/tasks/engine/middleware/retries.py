"""What becomes of an attempt that failed."""

import time
from typing import Any

import structlog
from dramatiq import Broker, Message
from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Retries

from src.domain.errors import DomainError
from src.tasks.engine.brokers.base import DIED_AT, ERROR, LONGEST_ERROR
from src.tasks.engine.middleware.base import Around
from src.tasks.engine.middleware.poison import NotRecordedError

log = structlog.get_logger(__name__)

WAIT_SECONDS = 1.0
POSTPONED = 5_000  # milliseconds


class RetriesMiddleware(Retries):
    """Dramatiq's, with back-off and jitter; but a broken rule is as broken at the next attempt."""

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        if message.failed or exception is None:
            return  # it was given up before it began, or all went well
        if isinstance(exception, DomainError):
            message.fail()
        else:
            self._retry(broker, message, exception)

    def _retry(self, broker: Broker, message: MessageProxy, exception: BaseException) -> None:
        """Send the message again, or give it up.

        What a hook raises Dramatiq only logs; then the message would be acknowledged, and lost.
        """
        before = dict(message.options)
        while True:
            try:
                if isinstance(exception, NotRecordedError):  # it has not even begun
                    broker.enqueue(message, delay=POSTPONED)  # type: ignore[arg-type]  # a proxy will do
                else:
                    again = super().after_process_message
                    again(broker, message, exception=exception)  # type: ignore[no-untyped-call]  # no types there
            except BrokerConnectionError as error:
                log.warning("retry_waits_for_broker", cause=str(error))
                message.options.clear()
                message.options.update(before)
                time.sleep(WAIT_SECONDS)
            except Exception:
                log.exception("retry_failed")
                message.fail()
                return
            else:
                return


class NotesMiddleware(Around):
    """Notes on a message when it is due, and if it is given up why and when.

    The latter is for those who look at dead letters.
    """

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if "eta" in message.options:
            # Back-off is no delay: Dramatiq's is when the attempt failed.
            message.options["requeue_timestamp"] = message.options["eta"]

    def end(
        self, message: MessageProxy, result: Any | None, exception: BaseException | None
    ) -> None:
        if not message.failed:
            return
        message.options[DIED_AT] = current_millis()
        if exception is not None:
            message.options[ERROR] = f"{type(exception).__qualname__}: {exception}"[:LONGEST_ERROR]
        else:
            message.options.setdefault(ERROR, "It was too old.")
