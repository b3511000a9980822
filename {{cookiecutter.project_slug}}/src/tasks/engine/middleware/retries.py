import time
from typing import Any

import structlog
from dramatiq import Broker, Message
from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Retries

from src.core.failures import describe
from src.domain.errors import DomainError
from src.tasks.engine.brokers.base import DIED_AT, ERROR
from src.tasks.engine.middleware.resources import NotRecordedError

log = structlog.get_logger(__name__)

WAIT_SECONDS = 1.0
POSTPONED = 5_000  # milliseconds


class RetriesMiddleware(Retries):
    """Dramatiq's retries with back-off and jitter, but none after a domain error.

    It also writes into a message when it is due, and when and why it died.
    """

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if "eta" in message.options:
            # Dramatiq's value is when the attempt failed: back-off would count as a delay.
            message.options["requeue_timestamp"] = message.options["eta"]

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any | None = None,
        exception: BaseException | None = None,
    ) -> None:
        if isinstance(exception, DomainError):
            message.fail()
        elif exception is not None and not message.failed:
            self._retry(broker, message, exception)
        if not message.failed:
            return
        message.options[DIED_AT] = current_millis()
        if exception is not None:
            message.options[ERROR] = describe(exception)
        else:
            message.options.setdefault(ERROR, "It was too old.")

    after_skip_message = after_process_message

    def _retry(self, broker: Broker, message: MessageProxy, exception: BaseException) -> None:
        """Send the message again, or let it die.

        Dramatiq only logs what a hook raises; then the message would be acknowledged, and lost.
        """
        before = dict(message.options)
        while True:
            try:
                if isinstance(exception, NotRecordedError):  # the attempt has not started
                    broker.enqueue(message, delay=POSTPONED)  # type: ignore[arg-type]  # a proxy will do
                else:
                    retry = super().after_process_message
                    retry(broker, message, exception=exception)  # type: ignore[no-untyped-call]  # no types there
            except BrokerConnectionError as error:
                log.warning("task_retry_postponed", cause=str(error))
                message.options.clear()
                message.options.update(before)
                time.sleep(WAIT_SECONDS)
            except Exception:
                log.exception("task_retry_abandoned")
                message.fail()
                return
            else:
                return
