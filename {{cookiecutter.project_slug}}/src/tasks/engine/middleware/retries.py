import time
from typing import Any

import structlog
from dramatiq import Broker, Message
from dramatiq.broker import MessageProxy
from dramatiq.common import current_millis
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Retries, Shutdown

from src.core.failures import describe
from src.domain.errors import DomainError
from src.tasks.engine.brokers.base import DIED_AT, ERROR
from src.tasks.engine.middleware.resources import NotRecordedError

log = structlog.get_logger(__name__)

BROKER_RETRY_SECONDS = 1.0
POSTPONE_MILLISECONDS = 5_000


class RetriesMiddleware(Retries):
    """Dramatiq's retries with exponential backoff and jitter, but none after a domain error.

    It also records in a message when its retry is due, and when and why it became a dead letter.
    """

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if "eta" in message.options:
            # Dramatiq sets the time of the failure, so the backoff would count as delay.
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
            message.options.setdefault(ERROR, "The message is older than its max_age.")

    after_skip_message = after_process_message

    def _retry(self, broker: Broker, message: MessageProxy, exception: BaseException) -> None:
        """Enqueue the next attempt. If that is impossible, make the message a dead letter.

        Dramatiq only logs an error of a hook. It would then acknowledge the message and lose it.
        """
        before = dict(message.options)
        while True:
            try:
                if isinstance(exception, Shutdown):  # the task has `notify_shutdown=True`
                    broker.enqueue(message)  # type: ignore[arg-type]  # a proxy works too
                elif isinstance(exception, NotRecordedError):  # the attempt did not start
                    broker.enqueue(message, delay=POSTPONE_MILLISECONDS)  # type: ignore[arg-type]  # a proxy works too
                else:
                    retry = super().after_process_message
                    retry(broker, message, exception=exception)  # type: ignore[no-untyped-call]  # untyped in Dramatiq
            except BrokerConnectionError as error:
                log.warning("task_retry_postponed", cause=str(error))
                message.options.clear()
                message.options.update(before)
                time.sleep(BROKER_RETRY_SECONDS)
            except Exception:
                log.exception("task_retry_abandoned")
                message.fail()
                return
            else:
                return
